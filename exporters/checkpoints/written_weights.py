"""Verification that a reader of the written files computes the weights of the levels."""

import torch

from ...spaces.model.checkpoint import Checkpoint
from ..artifact.compression import Compression
from ..artifact.remains import Remains


def verify_weights(written: Checkpoint, compression: Compression, left: Remains) -> None:
    """Compare the written weight of every layer that has a level with the level's weight, bit for bit.

    Args:
        written: the written model, whose tensors are read as dense weights.
        compression: the source model with the levels of its layers.
        left: the blocks and branches of the source that were written.

    Raises:
        OSError: a weight in the files differs from the level's weight.
    """
    for source, path in left.paths().items():
        level = compression.weight(source)
        if level is None:
            continue
        found = written.tensor(f"{path}.weight")
        meant = compression.linears[source].turn(level.cpu()).to(found.dtype)
        if found.shape != meant.shape or not torch.equal(_bits(found), _bits(meant)):
            raise OSError(
                f"{path}.weight in {written.path} differs from level {compression.levels[source]!r} of {source}; "
                "check the disk and export again"
            )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor, so that zeros of different sign and NaN compare exactly."""
    return tensor.contiguous().view(torch.uint8)
