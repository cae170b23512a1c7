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
from ...spaces.model.checkpoint import Checkpoint
from ...spaces.model.structure import Block, Structure
from .compression import Compression

_Found = TypeVar("_Found")
_LENGTH = 16
_TOLERANCE = 1e-3
"""Relative to the largest logit: both sides do the same arithmetic, so this is generous."""


def passes_unchanged(checkpoint: Checkpoint, structure: Structure, block: int, device: torch.device) -> bool:
    """Whether a block without its branches returns exactly what it is given."""

    def unchanged(runner: BlockRunner) -> bool:
        states_BTD = runner.embed(_tokens(checkpoint, structure))
        with runner.block(block, dense=False) as loaded:
            loaded.install({}, [branch.kind for branch in structure.blocks[block].branches])
            return torch.equal(loaded(states_BTD), states_BTD)

    return _with_runner(checkpoint, structure, device, unchanged)


def compare_logits(
    checkpoint: Checkpoint,
    compression: Compression,
    written: Checkpoint,
    shorter: Structure,
    device: torch.device,
) -> None:
    """Compare a written model of structure `shorter` with its source under `compression`, block by block.

    On a few tokens.

    Raises:
        ValueError: the logits differ; the message says what to do.
    """
    tokens_BT, meant_PV = searched_logits(checkpoint, compression, device)
    found_PV = _logits(written, tokens_BT, Compression(shorter, None, {}, device), device)
    limit = _TOLERANCE * float(meant_PV.abs().max())
    if not torch.allclose(meant_PV, found_PV, rtol=0, atol=limit, equal_nan=True):
        raise ValueError(
            f"the {shorter.model_class} written gives other logits than the one searched: its blocks depend on "
            "their number in a way that its configuration does not say; drop single branches instead of whole blocks"
        )


def searched_logits(
    checkpoint: Checkpoint, compression: Compression, device: torch.device
) -> tuple[Tensor, Tensor]:
    """A few random tokens_BT, B being 1, and the logits_PV that were searched of them."""
    tokens_BT = _tokens(checkpoint, compression.structure)
    return tokens_BT, _logits(checkpoint, tokens_BT, compression, device)


def _with_runner(
    checkpoint: Checkpoint, structure: Structure, device: torch.device, use: Callable[[BlockRunner], _Found]
) -> _Found:
    """What `use` gives of a runner that is gone afterwards.

    It holds embedding and head, gigabytes of a large model, and as it and its blocks refer to each other, they go only
    when they are collected.
    """
    found = use(
        BlockRunner(
            checkpoint, structure, device=device, dtype=checkpoint.dtype, micro_batch=1, length=_LENGTH
        )
    )
    gc.collect()
    return found


def _tokens(checkpoint: Checkpoint, structure: Structure) -> Tensor:
    """Random tokens_BT without padding."""
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(structure.ends.embedding.out_features, (1, _LENGTH), generator=generator)
    padding = checkpoint.config.get_text_config().pad_token_id
    return (
        torch.where(tokens_BT == padding, (padding or 0) + 1, tokens_BT) if padding is not None else tokens_BT
    )


def _logits(
    checkpoint: Checkpoint, tokens_BT: Tensor, compression: Compression, device: torch.device
) -> Tensor:
    run = partial(_run, tokens_BT=tokens_BT, compression=compression)
    return _with_runner(checkpoint, compression.structure, device, run)


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
