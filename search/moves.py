"""Moves of one unit to another level: what each costs, and using a budget up with them.

Array names carry their axes: K cost kinds, U units, L levels (short ladders padded).
"""

import math
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..spaces.space import Limits, Profile, Space

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_NO_LIMIT = np.iinfo(np.int64).max // 4


class Moves:
    """Exact costs of all single-unit moves of a profile at once, O(units x levels) in numpy.

    With several limits a move goes up or down by the sum of its cost changes, each relative to its limit.
    """

    def __init__(self, space: Space, limits: Limits) -> None:
        self.space = space
        self.kinds = tuple(limits) or space.kinds[:1]
        self.limit_K = np.array([limits.get(kind, _NO_LIMIT) for kind in self.kinds], np.int64)
        self._weight_K = 1.0 / np.maximum(self.limit_K, 1) if limits else np.ones(1)
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

    def active(self, levels_U: Ints) -> Bools:
        """Which units count: those whose parent, if any, is not dropped."""
        if self.flat:
            return np.ones(len(levels_U), np.bool_)
        dropped_U = self.drop_UL[self._units_U, levels_U]
        active_U: Bools = (self.parent_U < 0) | ~dropped_U[self.parent_U]
        return active_U

    def total(self, levels_U: Ints) -> Ints:
        """Cost in each kind, shape (K,)."""
        counted_KU = self.cost_KUL[:, self._units_U, levels_U]
        if not self.flat:
            counted_KU = counted_KU * self.active(levels_U)
        total: Ints = self.fixed_K + counted_KU.sum(axis=1)
        return total

    def fits(self, levels_U: Ints) -> bool:
        """Whether no limit is exceeded."""
        return bool((self.total(levels_U) <= self.limit_K).all())

    def deltas(self, levels_U: Ints) -> Ints:
        """Change of cost, shape (K, U, L), of moving one unit to each of its levels; 0 for irrelevant units."""
        here_KU = self.cost_KUL[:, self._units_U, levels_U]
        delta_KUL: Ints = self.cost_KUL - here_KU[:, :, None]
        if self.flat:
            return delta_KUL
        delta_KUL = delta_KUL * self.active(levels_U)[None, :, None]
        child_U = self.parent_U >= 0
        inside_KU = np.zeros_like(here_KU)
        np.add.at(inside_KU.T, self.parent_U[child_U], here_KU.T[child_U])
        now_U = self.drop_UL[self._units_U, levels_U].astype(np.int64)
        change_UL = now_U[:, None] - self.drop_UL
        found: Ints = delta_KUL + inside_KU[:, :, None] * change_UL
        return found

    def direction(self, delta_KUL: Ints) -> npt.NDArray[np.float64]:
        """Sum of the cost changes relative to the limits, shape (U, L): above 0 is up."""
        if len(self.kinds) == 1:
            return np.asarray(self._weight_K[0] * delta_KUL[0], np.float64)
        found: npt.NDArray[np.float64] = np.tensordot(self._weight_K, delta_KUL, axes=1)
        return found

    def steps(self, levels_U: Ints) -> Bools:
        """Shape (U, L): the levels one step from each unit's present one."""
        found: Bools = self.step_ULL[self._units_U, levels_U]
        return found

    def raises(self, levels_U: Ints, allowed_U: Bools | None = None) -> Bools:
        """Shape (U, L): single steps up that keep within the limits."""
        return _only(_State(self, levels_U).raises(), allowed_U)

    def lowerings(self, levels_U: Ints, allowed_U: Bools | None = None, *, far: bool = False) -> Bools:
        """Shape (U, L): single steps (`far`: any moves) that lower what exceeds its limit.

        Where nothing is exceeded, all that go down. No exceeded kind may rise.
        """
        return _only(_State(self, levels_U).lowerings(far)[0], allowed_U)

    def lower(
        self, levels_U: Ints, rng: np.random.Generator, allowed_U: Bools | None = None, *, far: bool = False
    ) -> Ints | None:
        """Lower random units until within the limits; None if no move is left or none leads there.

        A move that is enough alone goes before those that are not, so few units change. Costs that oppose each
        other could be traded for ever, so the number of moves is bounded.
        """
        state = _State(self, levels_U.copy())
        for _ in range(2 * self.exists_UL.sum() + 1):
            if (state.total_K <= self.limit_K).all():
                return state.levels_U
            moves_UL, enough_UL = (_only(moves, allowed_U) for moves in state.lowerings(far))
            choice_UL = enough_UL if enough_UL.any() else moves_UL
            if not choice_UL.any():
                return None
            state.move(choice_UL, rng)
        return None

    def fill(self, levels_U: Ints, rng: np.random.Generator, allowed_U: Bools | None = None) -> Ints:
        """Raise random units by single steps while that keeps within the limits."""
        state = _State(self, levels_U.copy())
        while (moves_UL := _only(state.raises(), allowed_U)).any():
            state.move(moves_UL, rng)
        return state.levels_U

    def sample(self, rng: np.random.Generator) -> Profile:
        """A random profile within the limits: every unit uniform over its levels, lowered, then filled."""
        counts_U = self.exists_UL.sum(axis=1)
        lowered_U = self.lower(rng.integers(counts_U), rng, far=True)
        if lowered_U is None:
            lowered_U = np.array(
                self.space.cheapest(dict(zip(self.kinds, self.limit_K.tolist(), strict=True)))
            )
        return as_profile(self.fill(lowered_U, rng))

    @cached_property
    def dearest(self) -> Profile:
        """Every unit at its dearest level in order of the kinds limited, then all others; nothing dropped."""
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
    """The profile as a tuple of plain integers."""
    return tuple(levels_U.tolist())


def dress(space: Space, profile: Profile, absent: Profile) -> Profile:
    """`profile` with the levels of `absent` in the units that a drop makes irrelevant."""
    return tuple(p if space.active(profile, i) else absent[i] for i, p in enumerate(profile))


def layer_type(space: Space, unit: int) -> str:
    """What units of one sort share: the last parts of their modules' paths, or the branch for a droppable."""
    found = space.units[unit]
    if found.droppable or not found.modules:
        return found.branch or found.name
    return ",".join(path.rpartition(".")[2] for path in found.modules)


def relative_cost(cost: int, reference: int) -> float:
    """log2 of a ratio of costs, finite for zeros."""
    return math.log2((cost + 1) / (reference + 1))


def _only(open_UL: Bools, allowed_U: Bools | None) -> Bools:
    return open_UL if allowed_U is None else open_UL & allowed_U[:, None]


class _State:
    """Levels, and what follows from them for all single moves; one move changes one row where no unit has a parent."""

    def __init__(self, moves: Moves, levels_U: Ints) -> None:
        self.moves = moves
        self.levels_U = levels_U
        self._settle()

    def _settle(self) -> None:
        self.total_K = self.moves.total(self.levels_U)
        self.delta_KUL = self.moves.deltas(self.levels_U)
        self.direction_UL = self.moves.direction(self.delta_KUL)
        self.step_UL = self.moves.steps(self.levels_U)

    def raises(self) -> Bools:
        """Shape (U, L): single steps up that keep within the limits."""
        room_K = self.moves.limit_K - self.total_K
        open_UL = self.step_UL & (self.direction_UL > 0)
        for delta_UL, room in zip(self.delta_KUL, room_K, strict=True):
            open_UL &= delta_UL <= room
        return open_UL

    def lowerings(self, far: bool) -> tuple[Bools, Bools]:
        """The lowering moves, and those of them that are enough alone."""
        over_K = self.total_K - self.moves.limit_K
        found_UL = (self.moves.exists_UL if far else self.step_UL).copy()
        exceeded_K = over_K > 0
        if exceeded_K.any():
            change_KUL = self.delta_KUL[exceeded_K]
            found_UL &= (change_KUL <= 0).all(axis=0) & (change_KUL < 0).any(axis=0)
        else:
            found_UL &= self.direction_UL < 0
        enough_UL = found_UL
        for delta_UL, over in zip(self.delta_KUL, over_K, strict=True):
            enough_UL = enough_UL & (delta_UL <= -over)
        return found_UL, enough_UL

    def move(self, choice_UL: Bools, rng: np.random.Generator) -> None:
        """Move a random unit, uniform over the units that can, to a random level of those open to it."""
        units = np.flatnonzero(choice_UL.any(axis=1))
        unit = units[rng.integers(len(units))]
        options = np.flatnonzero(choice_UL[unit])
        level = options[rng.integers(len(options))]
        self.levels_U[unit] = level
        if not self.moves.flat:
            self._settle()
            return
        change_K = self.delta_KUL[:, unit, level].copy()
        self.total_K = self.total_K + change_K
        self.delta_KUL[:, unit] -= change_K[:, None]
        self.direction_UL[unit] = self.moves.direction(self.delta_KUL[:, unit : unit + 1])[0]
        self.step_UL[unit] = self.moves.step_ULL[unit, level]
