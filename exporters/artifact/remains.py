"""Blocks and branches that remain of a model after branches are dropped."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...spaces.model.dense_model import DenseModel
from ...spaces.model.structure import Structure
from .compression import Compression
from .probe import passes_unchanged


@dataclass(frozen=True)
class Remains:
    """The blocks and dropped branches of a source model, as an export writes them.

    Attributes:
        structure: structure of the source model.
        removed: indices of the removed blocks; the later blocks are renumbered.
        kept: indices, in the source, of the blocks that are written.
        zeroed: unit names of the dropped branches that are written with zeros in all linear layers and biases.
        absent: maps the unit name of each dropped branch that is left out of a kept block to the paths of its modules.
    """

    structure: Structure
    removed: tuple[int, ...]
    kept: tuple[int, ...]
    zeroed: tuple[str, ...]
    absent: Mapping[str, tuple[str, ...]]

    def check_whole(self, fact: str) -> None:
        """Refuse branches that are dropped while their block is kept, for formats that cannot write them.

        Args:
            fact: the reason of the format, as a clause for the message.

        Raises:
            ValueError: there is such a branch.
        """
        if self.zeroed:
            raise ValueError(
                f"{self.zeroed[0]} is dropped but its block is kept, and {fact}; search with space.drop=blocks, or export with "
                "--format nemotron-nas or hf"
            )

    def paths(self) -> dict[str, str]:
        """Return the path in the written model of every linear layer, by its path in the source.

        The layers are the embedding, the head and the layers of the kept blocks.
        """
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
    """Find the blocks that are removed, and the dropped branches that are left out or written as zeros.

    A block whose branches are all dropped is removed, unless it still changes the hidden states (norms on the residual
    stream).

    Args:
        model: the dense model that is exported.
        compression: levels and dropped branches of the model.
        device: device on which blocks are run without their branches, to see whether they change the hidden states.
        left_out: maps a kind of branch to the names of those children of a block that are left out if the branch is
            dropped. Dropped branches of other kinds are written as zeros.
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
