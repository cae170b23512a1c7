"""Changes of cost of all moves of one unit to another level, as tables over all units and levels.

Array names end in their axes: K kinds of cost, U units, L levels of a unit. Units with fewer levels than others are
padded.
"""

import math
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import numpy.typing as npt

from ...spaces.space import Limits, Profile, Space

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_NO_LIMIT = np.iinfo(np.int64).max // 4


@dataclass(frozen=True)
class Open:
    """The open moves of every unit from each level to each other level, and how they change the cost.

    Changes are those of the moved unit only. The units of a branch that is dropped or kept again are not counted.

    Attributes:
        open_ULL: whether the move from a level to a level is open.
        delta_KULL: change of cost of each open move; 0 for a move that is not open.
        up_ULL: whether a move is open and goes up.
        least_K: smallest change of each cost among the moves up; a value below any change if some unit has a parent.
    """

    open_ULL: Bools
    delta_KULL: Ints
    up_ULL: Bools
    least_K: list[int]


class Moves:
    """Computes the exact cost changes of all single-unit moves of a profile at once.

    The time is O(units x levels) in numpy. With several limits, a move goes up if the sum of its cost changes, each
    relative to its limit, is above 0. Without limits, only the first kind of cost counts.

    Args:
        space: space of the profiles.
        limits: limits of the profiles; they may be empty.
    """

    def __init__(self, space: Space, limits: Limits) -> None:
        self.space = space
        self.kinds = tuple(limits) or space.kinds[:1]
        self.limit_K = np.array([limits.get(kind, _NO_LIMIT) for kind in self.kinds], np.int64)
        self._weights = [1.0 / max(limit, 1) for limit in limits.values()] or [1.0]
        shape = (len(space.units), max(len(unit.levels) for unit in space.units))
        self.cost_KUL = np.zeros((len(self.kinds), *shape), np.int64)
        self.exists_UL = np.zeros(shape, np.bool_)
        self.drop_UL = np.zeros(shape, np.bool_)
        self.step_ULL = np.zeros((*shape, shape[1]), np.bool_)
        for u, unit in enumerate(space.units):
            for n, level in enumerate(unit.levels):
                self.cost_KUL[:, u, n] = [level.costs[kind] for kind in self.kinds]
                self.exists_UL[u, n] = True
                self.drop_UL[u, n] = level.label == "drop"
                self.step_ULL[u, n, list(level.neighbours)] = True
        self.parent_U = np.array([-1 if u.parent is None else u.parent for u in space.units])
        self.droppable_U = np.array([unit.droppable for unit in space.units])
        self.fixed_K = np.array([space.fixed.get(kind, 0) for kind in self.kinds], np.int64)
        self._units_U = np.arange(shape[0])
        self.flat = bool((self.parent_U < 0).all())
        self.relatives = [
            space.children[u] if unit.parent is None else (unit.parent,) for u, unit in enumerate(space.units)
        ]
        self.most_lowerings = 2 * int(self.exists_UL.sum()) + 1

    def active(self, levels_U: Ints) -> Bools:
        """Return which units (U,) count: those without a dropped parent."""
        active_U: Bools = self.parent_U < 0
        return active_U if self.flat else active_U | ~self.dropped(levels_U)[self.parent_U]

    def dropped(self, levels_U: Ints) -> Bools:
        """Return which units (U,) are at the level `drop`."""
        dropped_U: Bools = self.drop_UL[self._units_U, levels_U]
        return dropped_U

    def total(self, levels_U: Ints) -> Ints:
        """Return the cost of a profile in each kind, (K,), with the space's fixed cost."""
        counted_KU = self.cost_KUL[:, self._units_U, levels_U]
        if not self.flat:
            counted_KU = counted_KU * self.active(levels_U)
        total: Ints = self.fixed_K + counted_KU.sum(axis=1)
        return total

    def fits(self, levels_U: Ints) -> bool:
        """Return whether a profile keeps within all limits."""
        return bool((self.total(levels_U) <= self.limit_K).all())

    def deltas(self, levels_U: Ints) -> Ints:
        """Return the change of cost, (K, U, L), of moving one unit to each of its levels.

        It is 0 for the units of a dropped branch.
        """
        here_KU = self.cost_KUL[:, self._units_U, levels_U]
        delta_KUL: Ints = self.cost_KUL - here_KU[:, :, None]
        if self.flat:
            return delta_KUL
        delta_KUL = delta_KUL * self.active(levels_U)[None, :, None]
        child_U = self.parent_U >= 0
        inside_KU = np.zeros_like(here_KU)
        np.add.at(inside_KU.T, self.parent_U[child_U], here_KU.T[child_U])
        now_U = self.dropped(levels_U).astype(np.int64)
        change_UL = now_U[:, None] - self.drop_UL
        found: Ints = delta_KUL + inside_KU[:, :, None] * change_UL
        return found

    def direction(self, delta_KUL: Ints) -> npt.NDArray[np.float64]:
        """Return for each move the sum of its changes of the K costs, each relative to its limit.

        The move goes up if the sum is above 0. The axes are those of `delta_KUL` without the first.
        """
        parts = [weight * delta for weight, delta in zip(self._weights, delta_KUL, strict=True)]
        return reduce(np.add, parts)

    @cached_property
    def near(self) -> Open:
        """The open moves if a unit may move to neighbouring levels only."""
        return self._open(self.step_ULL)

    @cached_property
    def far(self) -> Open:
        """The open moves if a unit may move to any of its levels."""
        return self._open(np.broadcast_to(self.exists_UL[:, None], self.step_ULL.shape))

    def _open(self, open_ULL: Bools) -> Open:
        delta_KULL = (self.cost_KUL[:, :, None] - self.cost_KUL[..., None]) * open_ULL
        up_ULL = self.direction(delta_KULL) > 0
        least_K = delta_KULL.min(axis=(1, 2, 3), where=up_ULL, initial=_NO_LIMIT).tolist()
        return Open(open_ULL, delta_KULL, up_ULL, least_K if self.flat else [-_NO_LIMIT] * len(least_K))

    @cached_property
    def dearest(self) -> Profile:
        """The profile with every unit at its dearest level and no branch dropped.

        Levels are compared by the limited kinds of cost first, then by the others.
        """
        kinds = [*self.kinds, *self.space.kinds]
        return tuple(
            max(
                range(len(unit.levels)),
                key=lambda n: (
                    unit.levels[n].label != "drop",
                    tuple(unit.levels[n].costs[kind] for kind in kinds),
                    n,
                ),
            )
            for unit in self.space.units
        )


def as_profile(levels_U: Ints) -> Profile:
    """Return an array of levels (U,) as a profile, a tuple of Python integers."""
    return tuple(levels_U.tolist())


def dress(space: Space, profile: Profile, absent: Profile) -> Profile:
    """Return `profile` with the levels of `absent` in all units of dropped branches."""
    return tuple(p if space.active(profile, i) else absent[i] for i, p in enumerate(profile))


def layer_type(space: Space, unit: int) -> str:
    """Return the type of a unit's layers: the last parts of its modules' paths, or the branch if it can be dropped."""
    found = space.units[unit]
    if found.droppable or not found.modules:
        return found.branch or found.name
    return ",".join(path.rpartition(".")[2] for path in found.modules)


def relative_cost(cost: int, reference: int) -> float:
    """Return log2 of the ratio of two costs; 1 is added to both, so that it is finite for a cost of 0."""
    return math.log2((cost + 1) / (reference + 1))
