"""Non-dominated choices for a part of a space, and for two parts together: what exact allocation is made of.

The front of two parts is the min-plus convolution of theirs. Both are nearly convex, so the best way to share a cost
between them lies near the tangent of their hulls; further away even the hulls are worse than what was found. The search
of shares stops there, which makes it exact at a few dozen shares a cost instead of all.

Array names carry their axes: N states of the whole, C its cells of cost; A and B states or cells of the parts.

References:
    Kellerer, Pferschy and Pisinger (2004), "Knapsack problems", chapter 11, for dynamic programming over classes and
    bounds that fathom states.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .hull import Floats, Hull

Ints = npt.NDArray[np.int64]

_SHARES = 8
"""Shares tried between two looks at the bounds."""

_CELLS = 2**13
"""Costs that a part tells apart at least: with fewer its units would not be small beside a cell."""

_WORK = 2**26
"""Most pairs of states looked at in one sum, about half a second."""


class Origin(Protocol):
    """Where states come from."""

    def fill(self, state: int, levels: list[int]) -> None:
        """Write the level of every unit that counts in this state."""


@dataclass(frozen=True, eq=False)
class OfUnit:
    """States are levels of one unit."""

    unit: int
    levels: Ints

    def fill(self, state: int, levels: list[int]) -> None:
        """Write this unit's level."""
        levels[self.unit] = self.levels.item(state)


@dataclass(frozen=True, eq=False)
class OfBoth:
    """A state is a state of each of two parts."""

    first: Origin
    second: Origin
    state_A: Ints
    state_B: Ints

    def fill(self, state: int, levels: list[int]) -> None:
        """Write the levels of both parts."""
        self.first.fill(self.state_A.item(state), levels)
        self.second.fill(self.state_B.item(state), levels)


@dataclass(frozen=True, eq=False)
class OfEither:
    """States are the states of one part followed by those of another; `state` picks among them."""

    first: Origin
    second: Origin
    size: int
    state: Ints

    def fill(self, state: int, levels: list[int]) -> None:
        """Write the levels of the part that the state is of."""
        index = self.state.item(state)
        if index < self.size:
            self.first.fill(index, levels)
        else:
            self.second.fill(index - self.size, levels)


@dataclass(frozen=True, eq=False)
class Choices:
    """Non-dominated choices for a part of a space, in order of cost.

    Attributes:
        cost: shape (states,), rising, exact.
        error: shape (states,), falling.
        hull: of all choices, those that are missing included.
        origin: of the states.
        exact: whether none is missing.
    """

    cost: Ints
    error: Floats
    hull: Hull
    origin: Origin
    exact: bool = True

    def __len__(self) -> int:
        return len(self.cost)


def of_unit(unit: int, levels: Sequence[int], costs: Sequence[int], errors: Sequence[float]) -> Choices:
    """The levels open to one unit."""
    cost_N, error_N = np.array(costs, np.int64), np.array(errors, np.float64)
    kept = _undominated(cost_N, error_N)
    hull = Hull.of(zip(costs, errors, strict=True))
    return Choices(cost_N[kept], error_N[kept], hull, OfUnit(unit, np.array(levels, np.int64)[kept]))


def either(first: Choices, second: Choices) -> Choices:
    """A choice of one part or of the other."""
    cost_N = np.concatenate([first.cost, second.cost])
    error_N = np.concatenate([first.error, second.error])
    kept = _undominated(cost_N, error_N)
    corners = [
        point for part in (first, second) for point in zip(part.hull.cost, part.hull.error, strict=True)
    ]
    origin = OfEither(first.origin, second.origin, len(first), kept)
    return Choices(cost_N[kept], error_N[kept], Hull.of(corners), origin, first.exact and second.exact)


def together(parts: Sequence[Choices], quantum: int, most_states: int) -> Choices:
    """A choice for all parts, summed in pairs so that few sums are large."""
    parts = list(parts)
    while len(parts) > 1:
        sums = [both(a, b, quantum, most_states) for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = [*sums, *parts[2 * len(sums) :]]
    return parts[0]


def both(first: Choices, second: Choices, quantum: int, most_states: int) -> Choices:
    """A choice for each of two parts.

    Args:
        first: choices for one part of the space.
        second: choices for another part.
        quantum: where costs have no common divisor near or above this, one state is kept per cell of at least
            about this width.
        most_states: up to so many pairs are all looked at, where a grid would lose some; it is faster from a
            sixteenth of that on.
    """
    hull, share = first.hull.plus(second.hull)
    grid = _Grid.over(first, second, quantum)
    pairs = len(first) * len(second)
    if pairs <= max(most_states // 16 if grid.lossless else most_states, 4 * grid.cells):
        state_A, state_B = np.divmod(np.arange(pairs), len(second))
        complete = True
    else:
        state_A, state_B, complete = grid.search(hull, share)
    cost_N = first.cost[state_A] + second.cost[state_B]
    error_N = first.error[state_A] + second.error[state_B]
    kept = _undominated(cost_N, error_N)
    origin = OfBoth(first.origin, second.origin, state_A[kept], state_B[kept])
    exact = first.exact and second.exact and complete
    return Choices(cost_N[kept], error_N[kept], hull, origin, exact)


@dataclass(frozen=True, eq=False)
class _Grid:
    """Two parts whose costs, each above its cheapest, fall into cells of one width."""

    first: Choices
    second: Choices
    width: int
    cell_A: Ints
    cell_B: Ints
    lossless: bool

    @classmethod
    def over(cls, first: Choices, second: Choices, quantum: int) -> "_Grid":
        excess_A, excess_B = first.cost - first.cost[0], second.cost - second.cost[0]
        unit = max(math.gcd(int(np.gcd.reduce(excess_A)), int(np.gcd.reduce(excess_B))), 1)
        reach = int(excess_A[-1] + excess_B[-1])
        width = min(quantum, reach // _CELLS)
        if width >= 2 * unit:
            width = max(width, reach // max(len(first) + len(second), _CELLS)) // unit * unit
        else:
            width = unit
        return cls(first, second, width, excess_A // width, excess_B // width, width == unit)

    @property
    def cells(self) -> int:
        """Number of cells of the sum."""
        return int(self.cell_A[-1] + self.cell_B[-1]) + 1

    def search(self, hull: Hull, share: Floats) -> tuple[Ints, Ints, bool]:
        """For each cell of the sum the best pair of states, and whether none that matters was passed over.

        Shares of the first part are tried from the tangent outwards, until the bounds say that what is further out
        is dominated.
        """
        error_A, bound_A, state_A = self._cells(self.first, self.cell_A)
        error_B, bound_B, state_B = self._cells(self.second, self.cell_B)
        cell_C = np.arange(self.cells)
        tangent_C = np.interp(cell_C * self.width, hull.cost - hull.cost[0], share - share[0]) // self.width
        middle_C = tangent_C.astype(np.int64) + 1
        best_C, found_C = np.full(self.cells, np.inf), middle_C.copy()
        open_C = {1: cell_C, -1: cell_C}
        work = 0
        for start in count(0, _SHARES):
            for side, live in open_C.items():
                best, found, middle, sum_ = best_C[live], found_C[live], middle_C[live], live + 2
                for offset in range(start, start + _SHARES):
                    at = middle + (offset if side > 0 else -1 - offset)
                    error = error_A.take(at, mode="clip")
                    error += error_B.take(sum_ - at, mode="clip")
                    better = error < best
                    np.copyto(best, error, where=better)
                    np.copyto(found, at, where=better)
                best_C[live], found_C[live] = best, found
                work += _SHARES * len(live)
            least_C = np.minimum.accumulate(best_C)
            for side, live in open_C.items():
                at = middle_C[live] + (start + _SHARES if side > 0 else -1 - start - _SHARES)
                bound = bound_A.take(at, mode="clip") + bound_B.take(live + 2 - at, mode="clip")
                open_C[side] = live[bound < least_C[live]]
            settled = not any(map(len, open_C.values()))
            if settled or work > _WORK:
                break
        kept = np.flatnonzero(best_C < np.concatenate([[np.inf], least_C[:-1]]))
        at = found_C[kept]
        return state_A[at - 1], state_B[kept + 1 - at], settled and self.lossless

    def _cells(self, part: Choices, cell_N: Ints) -> tuple[Floats, Floats, Ints]:
        """Error and bound at the lower edge of each cell, and the state there, the one nearest the hull.

        A state further up in its cell is compared by what it would be at the edge, moved along the hull. Errors and
        bounds have an infinite cell before the first and one behind the last.
        """
        size = int(cell_N[-1]) + 1
        state, error, bound = np.zeros(size, np.int64), np.full(size + 2, np.inf), np.full(size + 2, np.inf)
        bound[1:-1] = part.hull.at(part.cost[0] + self.width * np.arange(size))
        above_N = part.hull.at(part.cost) - bound[1 + cell_N]
        error_N = part.error - above_N
        order = np.arange(len(part))
        if not self.lossless:  # the last of a cell stays; both ends of the front do in any case
            order = np.concatenate([np.argsort(-error_N, kind="stable"), [len(part) - 1, 0]])
        state[cell_N[order]] = order
        error[1 + cell_N[order]] = error_N[order]
        return error, bound, state


def _undominated(cost_N: Ints, error_N: Floats) -> Ints:
    """Indices of the non-dominated states in order of cost."""
    order: Ints = np.argsort(cost_N, kind="stable")
    error = error_N[order]
    below = np.minimum.accumulate(error)
    kept: Ints = order[np.concatenate([[True], error[1:] < below[:-1]])]
    last_of_cost = np.concatenate([cost_N[kept][1:] != cost_N[kept][:-1], [True]])
    found: Ints = kept[last_of_cost]
    return found
