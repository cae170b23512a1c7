"""Short forwards that tell whether an exported model is the one that was searched.

Legend: B sequences, T positions, D hidden, P positions, V vocabulary.
"""

import gc
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ...evaluators.runner.runner import BlockRunner
from ...spaces.model.dense_model import DenseModel
from ...spaces.model.structure import Block
from .compression import Compression

_Found = TypeVar("_Found")
_LENGTH = 16
_TOLERANCE = 1e-3
"""Relative to the largest logit: both sides do the same arithmetic, so this is generous."""


def passes_unchanged(model: DenseModel, block: int, device: torch.device) -> bool:
    """Whether a block without its branches returns exactly what it is given."""

    def unchanged(runner: BlockRunner) -> bool:
        states_BTD = runner.embed(_tokens(model))
        with runner.block(block, dense=False) as loaded:
            loaded.install({}, [branch.kind for branch in model.structure.blocks[block].branches])
            return torch.equal(loaded(states_BTD), states_BTD)

    return _with_runner(model, device, unchanged)


def compare_logits(
    model: DenseModel, compression: Compression, written: DenseModel, device: torch.device
) -> None:
    """Compare the logits of a written model with those of its source under `compression`, on a few tokens.

    Raises:
        ValueError: the logits differ; the message says what to do.
    """
    tokens_BT, meant_PV = searched_logits(model, compression, device)
    found_PV = _logits(written, tokens_BT, Compression(written.structure, None, {}, device), device)
    limit = _TOLERANCE * float(meant_PV.abs().max())
    if not torch.allclose(meant_PV, found_PV, rtol=0, atol=limit, equal_nan=True):
        raise ValueError(
            f"the {written.structure.model_class} written gives other logits than the one searched: its blocks depend on "
            "their number in a way that its configuration does not say; drop single branches instead of whole blocks"
        )


def searched_logits(
    model: DenseModel, compression: Compression, device: torch.device
) -> tuple[Tensor, Tensor]:
    """A few random tokens_BT, B being 1, and the logits_PV that were searched of them."""
    tokens_BT = _tokens(model)
    return tokens_BT, _logits(model, tokens_BT, compression, device)


def _with_runner(model: DenseModel, device: torch.device, use: Callable[[BlockRunner], _Found]) -> _Found:
    """What `use` gives of a runner that is gone afterwards.

    It holds embedding and head, gigabytes of a large model, and as it and its blocks refer to each other, they go only
    when they are collected.
    """
    found = use(BlockRunner(model, device=device, dtype=model.dtype, micro_batch=1, length=_LENGTH))
    gc.collect()
    return found


def _tokens(model: DenseModel) -> Tensor:
    """Random tokens_BT without padding."""
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(model.structure.ends.embedding.out_features, (1, _LENGTH), generator=generator)
    padding = model.checkpoint.config.get_text_config().pad_token_id
    return (
        torch.where(tokens_BT == padding, (padding or 0) + 1, tokens_BT) if padding is not None else tokens_BT
    )


def _logits(model: DenseModel, tokens_BT: Tensor, compression: Compression, device: torch.device) -> Tensor:
    run = partial(_run, tokens_BT=tokens_BT, compression=compression)
    return _with_runner(model, device, run)


@torch.no_grad()
def _run(runner: BlockRunner, tokens_BT: Tensor, compression: Compression) -> Tensor:
    runner.install_ends(compression.weights(runner.structure.ends.linears, runner.dtype))
    states_BTD = runner.embed(tokens_BT)
    for block in runner.structure.blocks:
        states_BTD = _through(runner, block, states_BTD, compression)
    return runner.logits(states_BTD[0])


def _through(runner: BlockRunner, block: Block, states_BTD: Tensor, compression: Compression) -> Tensor:
    dropped = compression.dropped.get(block.index, ())
    used = [linear for branch in block.branches if branch.kind not in dropped for linear in branch.linears]
    weights = compression.weights(used, runner.dtype)
    with runner.block(block.index, dense=len(weights) < len(used)) as loaded:
        loaded.install(weights, dropped)
        return loaded(states_BTD)
