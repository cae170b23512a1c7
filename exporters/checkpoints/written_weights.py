"""The weights that a reader makes of written files, against the levels they were made from."""

import torch

from ...spaces.model.checkpoint import Checkpoint
from ..artifact.compression import Compression
from ..artifact.remains import Remains


def verify_weights(written: Checkpoint, compression: Compression, left: Remains) -> None:
    """Compare the weight of every layer that has a level, bit for bit.

    Raises:
        OSError: a weight differs.
    """
    for source, path in left.paths().items():
        level = compression.weight(source)
        if level is None:
            continue
        found = written.tensor(f"{path}.weight")
        meant = compression.linears[source].turn(level.cpu()).to(found.dtype)
        if found.shape != meant.shape or not torch.equal(_bits(found), _bits(meant)):
            raise OSError(
                f"{path}.weight of {written.path} is not {source} at {compression.levels[source]!r}; "
                "check the disk and export again"
            )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)
