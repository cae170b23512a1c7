"""Exact allocation when the errors of units add up: the whole predicted front of a space in one pass."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..spaces.integer_program import minimise
from ..spaces.space import Limits, Profile, Space
from .moves import Ints

Floats = npt.NDArray[np.float64]
Errors = Sequence[Sequence[float]]
"""Per unit and level; infinite for a level that must not be chosen."""


class _TooManyStatesError(Exception):
    """The exact front is larger than was allowed."""


@dataclass(frozen=True, eq=False)
class _Front:
    """Non-dominated partial choices in order of cost, and where each came from.

    Attributes:
        cost: shape (states,), in quanta above the cheapest choice.
        error: shape (states,), strictly falling.
        origin: index into the unpruned candidates: (option, state of `before`) for an extension by a unit,
            otherwise the states of `before` followed by those of `other`.
    """

    cost: Ints
    error: Floats
    origin: Ints = field(default_factory=lambda: np.zeros(1, np.int64))
    before: "_Front | None" = None
    other: "_Front | None" = None
    unit: int = -1
    options: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class PredictedFront:
    """The front that additive errors predict.

    Attributes:
        costs: fixed cost included, rising; upper bounds where the costs had to be rounded.
        errors: predicted, falling.
        exact: whether no cost was rounded.
    """

    costs: Ints
    errors: Floats
    exact: bool
    _front: _Front
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
        index = int(np.searchsorted(self.costs, limit, side="right")) - 1
        if index < 0:
            raise ValueError(
                f"budget {limit} is below the cheapest profile ({self.costs[0]}); raise the budget or add a "
                "cheaper level"
            )
        return self.profile(index)

    def profile(self, index: int) -> Profile:
        """The profile of one point; units under a dropped branch are at level 0."""
        levels = [0] * self._units
        front, state = self._front, index
        while (before := front.before) is not None:
            origin, size = int(front.origin[state]), len(before.cost)
            if front.other is None:
                levels[front.unit] = front.options[origin // size]
                front, state = before, origin % size
            else:
                front, state = (before, origin) if origin < size else (front.other, origin - size)
        return tuple(levels)


def allocate(space: Space, errors: Errors, kind: str, max_states: int = 2**18) -> PredictedFront:
    """Minimise the sum of errors for every budget at once.

    Dynamic programming over units keeps, per exact cost, the lowest error, and of these the non-dominated. A
    branch contributes either its drop or one of its other levels and its units.

    Args:
        space: with a tree of branches and units.
        errors: per unit and level; a branch's own error counts beside those of its units.
        kind: of cost.
        max_states: beyond this many states at once costs are rounded up to a quantum, so that a budget is still
            never exceeded.

    Time: O(units x levels x states log states); 224 units of one shape take about 0.1 s.
    """
    check_errors(space, errors)
    table = _Table(space, errors, kind)
    try:
        front, quantum, exact = _sweep(space, table, table.unit_cost, max_states), table.unit_cost, True
    except _TooManyStatesError:
        quantum = table.quantum(max_states)
        front, exact = _sweep(space, table, quantum, None), False
    costs = space.fixed.get(kind, 0) + table.cheapest + front.cost * quantum
    return PredictedFront(costs, front.error, exact, front, len(space.units))


def allocate_limits(space: Space, errors: Errors, limits: Limits) -> Profile:
    """The profile of smallest summed error under several limits at once.

    Raises:
        ValueError: no profile is within the limits.
    """
    check_errors(space, errors)
    space.check(limits)
    return minimise(space, errors, limits) or space.cheapest(limits)


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


class _Table:
    """Levels open to each unit with their cost above the unit's cheapest.

    What the cheapest levels of a branch's units cost is moved to the levels that keep the branch.
    """

    def __init__(self, space: Space, errors: Errors, kind: str) -> None:
        self.options = [tuple(n for n, e in enumerate(row) if e < math.inf) for row in errors]
        self.errors = [np.array([row[n] for n in o]) for row, o in zip(errors, self.options, strict=True)]
        self.excess: list[Ints] = []
        self.cheapest = 0
        least = [
            min(unit.levels[n].costs[kind] for n in o)
            for unit, o in zip(space.units, self.options, strict=True)
        ]
        for u, unit in enumerate(space.units):
            inside = sum(least[c] for c in space.children[u])
            cost = [
                unit.levels[n].costs[kind] + (0 if unit.levels[n].label == "drop" else inside)
                for n in self.options[u]
            ]
            self.excess.append(np.array(cost, np.int64) - min(cost))
            self.cheapest += 0 if unit.parent is not None else min(cost)
        self.unit_cost = max(math.gcd(*(int(e) for row in self.excess for e in row)), 1)

    def quantum(self, max_states: int) -> int:
        """The smallest multiple of the cost unit at which at most about `max_states` sums differ."""
        most = sum(int(row.max()) for row in self.excess) // self.unit_cost
        return self.unit_cost * -(-most // max(max_states - len(self.excess), 1))


def _sweep(space: Space, table: _Table, quantum: int, most: int | None) -> _Front:
    front = _Front(np.zeros(1, np.int64), np.zeros(1))
    for u, unit in enumerate(space.units):
        if unit.parent is not None:
            continue
        options = list(range(len(table.options[u])))
        dropped = [i for i in options if unit.levels[table.options[u][i]].label == "drop"]
        if not space.children[u] or len(dropped) == len(options):
            front = _extend(front, u, options, table, quantum, most)
            continue
        kept = _extend(front, u, [i for i in options if i not in dropped], table, quantum, most)
        for child in space.children[u]:
            kept = _extend(kept, child, list(range(len(table.options[child]))), table, quantum, most)
        front = _union(kept, _extend(front, u, dropped, table, quantum, most), most) if dropped else kept
    return front


def _extend(
    front: _Front, unit: int, options: list[int], table: _Table, quantum: int, most: int | None
) -> _Front:
    cost_L = -(-table.excess[unit][options] // quantum)
    cost_LN = cost_L[:, None] + front.cost
    error_LN = table.errors[unit][options][:, None] + front.error
    kept = _prune(cost_LN.ravel(), error_LN.ravel(), most)
    levels = tuple(table.options[unit][i] for i in options)
    return _Front(cost_LN.ravel()[kept], error_LN.ravel()[kept], kept, front, None, unit, levels)


def _union(first: _Front, second: _Front, most: int | None) -> _Front:
    cost_N = np.concatenate([first.cost, second.cost])
    error_N = np.concatenate([first.error, second.error])
    kept = _prune(cost_N, error_N, most)
    return _Front(cost_N[kept], error_N[kept], kept, first, second)


def _prune(cost_N: Ints, error_N: Floats, most: int | None) -> Ints:
    """Indices of the non-dominated states in order of cost."""
    order: Ints = np.argsort(cost_N, kind="stable")
    error = error_N[order]
    below = np.minimum.accumulate(error)
    kept: Ints = order[np.concatenate([[True], error[1:] < below[:-1]])]
    last_of_cost = np.concatenate([cost_N[kept][1:] != cost_N[kept][:-1], [True]])
    kept = kept[last_of_cost]
    if most is not None and len(kept) > most:
        raise _TooManyStatesError
    return kept
