"""Short forwards that tell whether an exported model is the one that was searched.

Legend: B sequences, T positions, D hidden, P positions, V vocabulary.
"""

import torch
from torch import Tensor

from ..evaluators.runner import BlockRunner
from ..spaces.checkpoint import Checkpoint
from ..spaces.structure import Structure
from .compression import Compression

_LENGTH = 16
_TOLERANCE = 1e-3
"""Relative to the largest logit: both sides do the same arithmetic, so this is generous."""


def passes_unchanged(checkpoint: Checkpoint, structure: Structure, block: int, device: torch.device) -> bool:
    """Whether a block without its branches returns exactly what it is given."""
    runner = _runner(checkpoint, structure, device)
    states_BTD = runner.embed(_tokens(checkpoint, structure))
    with runner.block(block) as loaded:
        loaded.install({}, [branch.kind for branch in structure.blocks[block].branches])
        return torch.equal(loaded(states_BTD), states_BTD)


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
    nothing = Compression(shorter, None, {}, device)
    found_PV = _logits(_runner(written, shorter, device), tokens_BT, nothing)
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
    return tokens_BT, _logits(_runner(checkpoint, compression.structure, device), tokens_BT, compression)


def _runner(checkpoint: Checkpoint, structure: Structure, device: torch.device) -> BlockRunner:
    return BlockRunner(
        checkpoint,
        structure,
        device=device,
        dtype=checkpoint.dtype,
        micro_batch=1,
        length=_LENGTH,
    )


def _tokens(checkpoint: Checkpoint, structure: Structure) -> Tensor:
    """Random tokens_BT without padding."""
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(structure.ends.embedding.out_features, (1, _LENGTH), generator=generator)
    padding = checkpoint.config.get_text_config().pad_token_id
    return (
        torch.where(tokens_BT == padding, (padding or 0) + 1, tokens_BT) if padding is not None else tokens_BT
    )


@torch.no_grad()
def _logits(runner: BlockRunner, tokens_BT: Tensor, compression: Compression) -> Tensor:
    runner.install_ends(compression.weights(runner.structure.ends.linears))
    states_BTD = runner.embed(tokens_BT)
    for block in runner.structure.blocks:
        with runner.block(block.index) as loaded:
            loaded.install(compression.weights(block.linears), compression.dropped.get(block.index, ()))
            states_BTD = loaded(states_BTD)
    return runner.logits(states_BTD[0])
