"""Conversion between the names of tensors in a checkpoint's files and their names in the model."""

from dataclasses import dataclass

from ...spaces.model.checkpoint import Checkpoint
from ...spaces.model.structure import Structure


@dataclass(frozen=True, slots=True)
class BlockName:
    """The parts of the stored name of a tensor inside a block, which is `blocks.index.rest`.

    Attributes:
        blocks: path of the list of blocks, as the file spells it.
        index: index of the block.
        rest: name of the tensor inside the block.
    """

    blocks: str
    index: int
    rest: str

    def renumbered(self, index: int) -> str:
        """Return the name of the same tensor in the block with another index."""
        return f"{self.blocks}.{index}.{self.rest}"


class StoredNames:
    """Converter of the stored names of a checkpoint to the names in its model.

    Files may store a tensor with or without the prefix of the base model, and a tied tensor under either of its names.

    Args:
        checkpoint: files of the model.
        structure: structure of the model.
    """

    def __init__(self, checkpoint: Checkpoint, structure: Structure) -> None:
        prefix = f"{checkpoint.skeleton().base_model_prefix}."
        path = structure.blocks_path
        self._blocks_path = path
        self._spellings = (path, path.removeprefix(prefix), prefix + path)
        self._names = checkpoint.model_names

    def block(self, stored: str) -> BlockName | None:
        """Split the stored name of a tensor inside a block; return None for a tensor outside the blocks."""
        for blocks in self._spellings:
            index, dot, rest = stored.removeprefix(f"{blocks}.").partition(".")
            if stored.startswith(f"{blocks}.") and dot and index.isdecimal():
                return BlockName(blocks, int(index), rest)
        return None

    def model_name(self, stored: str) -> str:
        """Return the name in the model of a stored tensor, or the stored name if the model has no such tensor."""
        if inside := self.block(stored):
            return f"{self._blocks_path}.{inside.index}.{inside.rest}"
        return self._names.get(stored, stored)
