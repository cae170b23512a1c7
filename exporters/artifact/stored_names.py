"""The names of tensors in a checkpoint's files against the names in the model."""

from dataclasses import dataclass

from ...spaces.model.checkpoint import Checkpoint
from ...spaces.model.structure import Structure


@dataclass(frozen=True, slots=True)
class BlockName:
    """A stored name inside a block, taken apart: `list.index.rest`."""

    blocks: str
    index: int
    rest: str

    def renumbered(self, index: int) -> str:
        """The name in block `index`."""
        return f"{self.blocks}.{index}.{self.rest}"


class StoredNames:
    """Files may name a tensor with or without the base model's prefix, and a tied one by either name."""

    def __init__(self, checkpoint: Checkpoint, structure: Structure) -> None:
        prefix = f"{checkpoint.skeleton().base_model_prefix}."
        path = structure.blocks_path
        self._blocks_path = path
        self._spellings = (path, path.removeprefix(prefix), prefix + path)
        self._names = checkpoint.model_names

    def block(self, stored: str) -> BlockName | None:
        """The block that a stored tensor belongs to, or None."""
        for blocks in self._spellings:
            index, dot, rest = stored.removeprefix(f"{blocks}.").partition(".")
            if stored.startswith(f"{blocks}.") and dot and index.isdecimal():
                return BlockName(blocks, int(index), rest)
        return None

    def model_name(self, stored: str) -> str:
        """The model's name of a stored tensor; of a tensor that the model lacks, its stored name."""
        if inside := self.block(stored):
            return f"{self._blocks_path}.{inside.index}.{inside.rest}"
        return self._names.get(stored, stored)
