"""Units, which are the parts of a model that are compressed, and their levels, which are the ways to do so."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from .levels.labels import parse_label, stored_bits


@dataclass(frozen=True)
class Level:
    """One way to compress a unit, with its exact costs.

    Attributes:
        label: name of the level in files; `spaces/levels/labels.py` describes the grammar.
        costs: maps each cost kind to the exact cost of the unit at this level.
        neighbours: indices, among the unit's levels, of the levels that are one step away.
    """

    label: str
    costs: Mapping[str, int]
    neighbours: tuple[int, ...] = ()


@dataclass(frozen=True)
class Unit:
    """The smallest part of a model that has its own level: a linear layer, a fused group, a branch or a block.

    Attributes:
        name: name that is unique in the space; the module path for a linear layer, the joined paths for a fused group,
            `blocks.3.attention` or `blocks.3.mlp` for a branch, `blocks.3` for a whole block.
        modules: paths of the linear layers that take this unit's level; for a branch or block, of all linear layers
            that are dropped with it.
        block: index of the decoder block; -1 for embeddings and head.
        branch: kind of the branch, `attention` or `mlp`; `block` for a whole block and, where whole blocks may be
            dropped, for the layers inside; empty for embeddings and head.
        levels: levels of the unit, in order of the first cost kind.
        parent: index of the branch or block unit whose level `drop` makes this unit irrelevant; None without one.
    """

    name: str
    modules: tuple[str, ...]
    block: int
    branch: str
    levels: tuple[Level, ...]
    parent: int | None = None

    @cached_property
    def droppable(self) -> bool:
        """Whether this unit is a branch or block, which is kept or dropped as a whole."""
        return any(level.label == "drop" for level in self.levels)

    @cached_property
    def index(self) -> dict[str, int]:
        """A mapping from label to level index."""
        return {level.label: i for i, level in enumerate(self.levels)}

    def nearest(self, label: str) -> int:
        """Return the index of the level `label`, or of the nearest one if the unit lacks that level.

        The nearest level has the most bits per weight among those with at most the bits of `label`. If there is none,
        it is the level with the fewest bits. A branch or block is kept unless `label` is `drop`.
        """
        if self.droppable:
            return self.index["drop" if label == "drop" else "keep"]
        if label in self.index:
            return self.index[label]
        below = [(_nominal(level.label), i) for i, level in enumerate(self.levels)]
        return max((b for b in below if b[0] <= _nominal(label)), default=min(below))[1]


def _nominal(label: str) -> float:
    """Return the stored bits per weight of a layer of 4096 x 4096 weights at this label."""
    shape = (4096, 4096)
    return stored_bits(parse_label(label), shape) / (shape[0] * shape[1])
