"""Short forward passes that show whether an exported model computes what the search evaluated.

Shapes: B sequences, T positions, D hidden size, P positions of one sequence, V vocabulary.
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
"""Largest allowed difference relative to the largest logit; generous, because both models do the same arithmetic."""


def passes_unchanged(model: DenseModel, block: int, device: torch.device) -> bool:
    """Tell whether a block without its branches returns its input hidden states unchanged, bit for bit."""

    def unchanged(runner: BlockRunner) -> bool:
        states_BTD = runner.embed(_tokens(model))
        with runner.block(block, dense=False) as loaded:
            loaded.install({}, [branch.kind for branch in model.structure.blocks[block].branches])
            return torch.equal(loaded(states_BTD), states_BTD)

    return _with_runner(model, device, unchanged)


def compare_logits(
    model: DenseModel, compression: Compression, written: DenseModel, device: torch.device
) -> None:
    """Compare the logits of a written model, on a few tokens, with those of its source at the assigned levels.

    Args:
        model: the dense model that is the source.
        compression: the levels and dropped branches of the source.
        written: the written model, with its weights as a reader computes them.
        device: device that both models run on.

    Raises:
        ValueError: the logits differ; the message says what to do.
    """
    tokens_BT, meant_PV = searched_logits(model, compression, device)
    found_PV = _logits(written, tokens_BT, Compression(written.structure, None, {}, device), device)
    limit = _TOLERANCE * float(meant_PV.abs().max())
    if not torch.allclose(meant_PV, found_PV, rtol=0, atol=limit, equal_nan=True):
        raise ValueError(
            f"the written {written.structure.model_class} gives other logits than the searched model: its blocks depend on "
            "their number in a way that its configuration does not say; drop single branches instead of whole blocks"
        )


def searched_logits(
    model: DenseModel, compression: Compression, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return a few random tokens (1, T), and their logits (P, V) in the model at the levels of `compression`."""
    tokens_BT = _tokens(model)
    return tokens_BT, _logits(model, tokens_BT, compression, device)


def _with_runner(model: DenseModel, device: torch.device, use: Callable[[BlockRunner], _Found]) -> _Found:
    """Return the result of `use` for a block runner that is freed afterwards.

    The runner holds the embedding and the head, which take gigabytes in a large model. The runner and its blocks refer
    to each other, so only the garbage collector frees them.
    """
    found = use(BlockRunner(model, device=device, dtype=model.dtype, micro_batch=1, length=_LENGTH))
    gc.collect()
    return found


def _tokens(model: DenseModel) -> Tensor:
    """Return random tokens (1, T), always the same for a model, without its padding token."""
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(model.structure.ends.embedding.out_features, (1, _LENGTH), generator=generator)
    padding = model.checkpoint.config.get_text_config().pad_token_id
    return (
        torch.where(tokens_BT == padding, (padding or 0) + 1, tokens_BT) if padding is not None else tokens_BT
    )


def _logits(model: DenseModel, tokens_BT: Tensor, compression: Compression, device: torch.device) -> Tensor:
    """Compute the logits (P, V) of the first sequence in the model at the levels of `compression`."""
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
    """Run one block at the levels of `compression`; the dense weights are loaded only if some layer needs them."""
    dropped = compression.dropped.get(block.index, ())
    used = [linear for branch in block.branches if branch.kind not in dropped for linear in branch.linears]
    weights = compression.weights(used, runner.dtype)
    with runner.block(block.index, dense=len(weights) < len(used)) as loaded:
        loaded.install(weights, dropped)
        return loaded(states_BTD)
