"""What remains of a model's blocks when branches are dropped."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...spaces.model.dense_model import DenseModel
from ...spaces.model.structure import Structure
from .compression import Compression
from .probe import passes_unchanged


@dataclass(frozen=True)
class Remains:
    """Blocks of the source, by index.

    Attributes:
        structure: of the source.
        removed: blocks that are gone; the next ones take their number.
        kept: indices of the blocks that stay.
        zeroed: dropped branches, named as units, that remain with zeros in all their linear layers and biases.
        absent: dropped branches of the blocks that are kept, named as units, to the modules that went with them.
    """

    structure: Structure
    removed: tuple[int, ...]
    kept: tuple[int, ...]
    zeroed: tuple[str, ...]
    absent: Mapping[str, tuple[str, ...]]

    def check_whole(self, fact: str) -> None:
        """Refuse branches that are dropped alone; `fact` says why.

        Raises:
            ValueError: there is one.
        """
        if self.zeroed:
            raise ValueError(
                f"{self.zeroed[0]} is dropped alone, and {fact}; search with space.drop=blocks, or export with "
                "--format nemotron-nas or hf"
            )

    def paths(self) -> dict[str, str]:
        """Path in the source to path in the written model, of every linear layer that is written."""
        blocks, list_path = self.structure.blocks, self.structure.blocks_path
        found = {end.path: end.path for end in self.structure.ends.linears}
        for number, index in enumerate(self.kept):
            for linear in blocks[index].linears:
                found[linear.path] = f"{list_path}.{number}{linear.path.removeprefix(blocks[index].path)}"
        return found


def remains(
    model: DenseModel,
    compression: Compression,
    device: torch.device,
    left_out: Mapping[str, tuple[str, ...]],
) -> Remains:
    """What is removed, what is left out and what is kept as zeros.

    A block whose branches are all dropped is removed, unless it still changes what passes through it (norms on
    the residual stream).

    Args:
        model: the dense model that is exported.
        compression: which branches are dropped.
        device: where blocks are tried.
        left_out: kind of branch to the block's children that are left out with it; other kinds become zeros.
    """
    structure = compression.structure
    removed = tuple(i for i in compression.empty if passes_unchanged(model, i, device))
    kept = tuple(block.index for block in structure.blocks if block.index not in removed)
    dropped = [(i, kind) for i in kept for kind in compression.dropped.get(i, ())]
    zeroed = tuple(f"blocks.{i}.{kind}" for i, kind in dropped if kind not in left_out)
    absent = {
        f"blocks.{i}.{kind}": tuple(f"{structure.blocks[i].path}.{child}" for child in left_out[kind])
        for i, kind in dropped
        if kind in left_out
    }
    return Remains(structure, removed, kept, zeroed, absent)
