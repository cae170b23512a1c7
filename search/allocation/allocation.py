"""Exact allocation when the errors of units add up: the whole predicted front of a space in one pass."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...spaces.space import Limits, Profile, Space
from .choices import Choices, Ints, Origin, either, of_unit, together
from .hull import Floats, Hull

Errors = Sequence[Sequence[float]]
"""Per unit and level; infinite for a level that must not be chosen."""


@dataclass(frozen=True, eq=False)
class PredictedFront:
    """The front that additive errors predict.

    Attributes:
        costs: exact costs in rising order, the fixed cost included.
        errors: predicted errors in falling order, one for each cost.
        exact: whether every error is proved to be the least within its cost.
    """

    costs: Ints
    errors: Floats
    exact: bool
    _hull: Hull
    _origin: Origin
    _units: int

    def __len__(self) -> int:
        return len(self.costs)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        """(cost, error) in order of cost."""
        return zip(self.costs.tolist(), self.errors.tolist(), strict=True)

    def best(self, limit: int) -> Profile:
        """The profile of lowest predicted error that costs at most `limit`.

        Raises:
            ValueError: even the cheapest costs more.
        """
        return self.profile(self._within(limit))

    def profile(self, index: int) -> Profile:
        """The profile of one point; units under a dropped branch are at level 0."""
        levels = [0] * self._units
        self._origin.fill(index, levels)
        return tuple(levels)

    def bound(self, limit: int) -> float:
        """What the summed error of no profile within `limit` is below: the Lagrangian bound.

        Raises:
            ValueError: even the cheapest costs more.
        """
        self._within(limit)
        return float(self._hull.at(limit))

    def gap(self, limit: int) -> float:
        """How much lower at most the summed error of another profile within `limit` could be; 0 if exact.

        Raises:
            ValueError: even the cheapest costs more.
        """
        error = float(self.errors[self._within(limit)])
        return 0.0 if self.exact else max(error - self.bound(limit), 0.0)

    def _within(self, limit: int) -> int:
        index = int(np.searchsorted(self.costs, limit, side="right")) - 1
        if index < 0:
            raise ValueError(
                f"budget {limit} is below the cheapest profile ({self.costs[0]}); raise the budget or add a "
                "cheaper level"
            )
        return index


def allocate(space: Space, errors: Errors, kind: str, max_states: int = 2**18) -> PredictedFront:
    """Minimise the sum of errors for every budget at once.

    Dynamic programming keeps, per exact cost, the lowest error, and of these the non-dominated, for ever larger
    parts of the space. A branch contributes either its drop or one of its other levels and its units.

    Args:
        space: with a tree of branches and units.
        errors: per unit and level; a branch's own error counts beside those of its units.
        kind: kind of cost that limits the profiles.
        max_states: where sums of costs can take about as many values or more, only one state is kept per cell of
            nearby costs. Costs stay exact, so that a budget is never exceeded, and `gap` says what may be lost.

    Time: 0.05 s for 224 units of three shapes, 0.2 s for 1,000 and 3 s for 10,000, all exact; four times as much where
    no two levels cost the same, with gaps of 0.03 %, 0.005 % and 0.002 % of a profile's error.
    """
    check_errors(space, errors)
    reach = space.cost(space.extreme(kind, largest=True), kind) - space.cost(space.extreme(kind), kind)
    choices = _Allocation(space, errors, kind, reach // max_states, max_states).all()
    fixed = space.fixed.get(kind, 0)
    hull = Hull(choices.hull.cost + fixed, choices.hull.error)
    return PredictedFront(
        choices.cost + fixed, choices.error, choices.exact, hull, choices.origin, len(space.units)
    )


def allocate_limits(space: Space, errors: Errors, limits: Limits) -> Profile:
    """The profile of smallest summed error under several limits at once.

    Raises:
        ValueError: no profile is within the limits.
    """
    check_errors(space, errors)
    space.check(limits)
    return space.minimise(errors, limits) or space.cheapest(limits)


def check_errors(space: Space, errors: Errors) -> None:
    """Refuse errors that are not one number (or inf) per level, with one finite per unit.

    Raises:
        ValueError: with the unit concerned.
    """
    if len(errors) != len(space.units):
        raise ValueError(f"{len(errors)} rows of errors for {len(space.units)} units; give one row per unit")
    for unit, row in zip(space.units, errors, strict=True):
        if len(row) != len(unit.levels):
            raise ValueError(f"unit {unit.name!r} has {len(unit.levels)} levels but {len(row)} errors")
        if any(math.isnan(e) or e == -math.inf for e in row):
            raise ValueError(f"unit {unit.name!r} has errors {list(row)}; they must be numbers or inf")
        if min(row) == math.inf:
            raise ValueError(f"unit {unit.name!r} has no level with a finite error; allow at least one")


class _Allocation:
    """The choices of a space's parts."""

    def __init__(self, space: Space, errors: Errors, kind: str, quantum: int, most_states: int) -> None:
        self.space = space
        self.errors = errors
        self.kind = kind
        self.quantum = quantum
        self.most_states = most_states

    def all(self) -> Choices:
        """Choices for the whole space."""
        roots = (u for u, unit in enumerate(self.space.units) if unit.parent is None)
        return self._together(self._root(u) for u in roots)

    def _root(self, u: int) -> Choices:
        """Choices for a unit that is no part of a branch, or for a branch with its units."""
        levels = self._open(u)
        dropped = [n for n in levels if self.space.units[u].levels[n].label == "drop"]
        if not self.space.children[u] or len(dropped) == len(levels):
            return self._unit(u, levels)
        keeping = self._unit(u, [n for n in levels if n not in dropped])
        kept = self._together([keeping, *(self._unit(c, self._open(c)) for c in self.space.children[u])])
        return either(kept, self._unit(u, dropped)) if dropped else kept

    def _open(self, u: int) -> list[int]:
        return [n for n, error in enumerate(self.errors[u]) if error < math.inf]

    def _unit(self, u: int, levels: list[int]) -> Choices:
        costs = [self.space.units[u].levels[n].costs[self.kind] for n in levels]
        return of_unit(u, levels, costs, [self.errors[u][n] for n in levels])

    def _together(self, parts: Iterable[Choices]) -> Choices:
        return together(list(parts), self.quantum, self.most_states)
