"""Units and their levels: what is compressed, and how it may be."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from .levels.labels import parse_label, stored_bits


@dataclass(frozen=True)
class Level:
    """One stored way to compress a unit.

    Attributes:
        label: its name in files (`spaces/levels/labels.py` has the grammar).
        costs: cost kind to this level's exact cost.
        neighbours: indices, in the unit's levels, of the levels one step away.
    """

    label: str
    costs: Mapping[str, int]
    neighbours: tuple[int, ...] = ()


@dataclass(frozen=True)
class Unit:
    """The smallest thing with a level of its own.

    Attributes:
        name: unique in the space; the module's path for a linear layer, the joined paths for a fused group,
            `blocks.3.attention` or `blocks.3.mlp` for a branch, `blocks.3` for a whole block.
        modules: paths of the linear layers that take this unit's level; for a branch or block, of those that
            vanish with it.
        block: index of the decoder block; -1 for embeddings and head.
        branch: `attention`, `mlp`, `block` or `` (embeddings and head).
        levels: in order of the first cost kind.
        parent: index of the branch or block unit whose `drop` makes this unit irrelevant.
    """

    name: str
    modules: tuple[str, ...]
    block: int
    branch: str
    levels: tuple[Level, ...]
    parent: int | None = None

    @cached_property
    def droppable(self) -> bool:
        """Whether this unit is a branch or block that is kept or dropped."""
        return any(level.label == "drop" for level in self.levels)

    @cached_property
    def index(self) -> dict[str, int]:
        """Label to level index."""
        return {level.label: i for i, level in enumerate(self.levels)}

    def nearest(self, label: str) -> int:
        """Index of `label`, else of the dearest level below it in nominal bits, else of the cheapest."""
        if self.droppable:
            return self.index["drop" if label == "drop" else "keep"]
        if label in self.index:
            return self.index[label]
        below = [(_nominal(level.label), i) for i, level in enumerate(self.levels)]
        return max((b for b in below if b[0] <= _nominal(label)), default=min(below))[1]


def _nominal(label: str) -> float:
    """Stored bits per weight of a large layer at this label."""
    shape = (4096, 4096)
    return stored_bits(parse_label(label), shape) / (shape[0] * shape[1])
