"""Fronts of cost and error for parts of a space, and how to combine two of them; exact allocation consists of these.

A state is one choice of a level for every unit of a part. The front of a part holds its non-dominated states.

The front of two parts is the min-plus convolution of their fronts. Both fronts are nearly convex. So the best way to
share a cost between the parts lies near the tangent of their convex hulls. Further away even the hulls are worse than
the best state found, and the search over shares stops there. It is exact after a few dozen shares per cost instead of
all of them.

Array names end in their axes: N states of a front, C cells of the cost of a sum, A and B states or cells of its first
and second part.

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
"""Number of shares tried on each side between two checks of the bounds."""

_CELLS = 2**13
"""Least number of cells of a grid that loses states, so that a cell is narrow even where a part has few units."""

_WORK = 2**26
"""Number of pairs of states after which the search of one grid stops, about half a second."""


class Origin(Protocol):
    """Interface of the record of which levels each state of a front consists of."""

    def fill(self, state: int, levels: list[int]) -> None:
        """Write into `levels` the level of every unit that counts in a state.

        Args:
            state: index of the state in its front.
            levels: level index of every unit of the space, changed in place.
        """


@dataclass(frozen=True, eq=False)
class OfUnit:
    """Origin of states that are levels of one unit.

    Attributes:
        unit: index of the unit in the space.
        levels: level index of the unit in each state, (N,).
    """

    unit: int
    levels: Ints

    def fill(self, state: int, levels: list[int]) -> None:
        """Write into `levels` the level that the unit has in a state."""
        levels[self.unit] = self.levels.item(state)


@dataclass(frozen=True, eq=False)
class OfBoth:
    """Origin of states that combine a state of one part with a state of another part.

    Attributes:
        first: origin of the states of the first part.
        second: origin of the states of the second part.
        state_A: index of the first part's state in each combined state, (N,).
        state_B: index of the second part's state in each combined state, (N,).
    """

    first: Origin
    second: Origin
    state_A: Ints
    state_B: Ints

    def fill(self, state: int, levels: list[int]) -> None:
        """Write into `levels` the levels of the two states, one of each part, that a state combines."""
        self.first.fill(self.state_A.item(state), levels)
        self.second.fill(self.state_B.item(state), levels)


@dataclass(frozen=True, eq=False)
class OfEither:
    """Origin of states that each come from one of two alternatives.

    Attributes:
        first: origin of the states of the first alternative.
        second: origin of the states of the second alternative.
        size: number of states of the first alternative.
        state: index of each state, (N,), in the first alternative's states followed by the second's.
    """

    first: Origin
    second: Origin
    size: int
    state: Ints

    def fill(self, state: int, levels: list[int]) -> None:
        """Write into `levels` the levels of the state of the first or second alternative that a state comes from."""
        index = self.state.item(state)
        if index < self.size:
            self.first.fill(index, levels)
        else:
            self.second.fill(index - self.size, levels)


@dataclass(frozen=True, eq=False)
class Choices:
    """The front of a part of a space: its non-dominated states in order of cost.

    Attributes:
        cost: exact cost of each state, (N,), rising.
        error: summed error of each state, (N,), falling.
        hull: lower convex hull of all states of the part, also of those that the front lacks.
        origin: record of the levels that each state consists of.
        exact: whether no non-dominated state is missing.
    """

    cost: Ints
    error: Floats
    hull: Hull
    origin: Origin
    exact: bool = True

    def __len__(self) -> int:
        return len(self.cost)


def of_unit(unit: int, levels: Sequence[int], costs: Sequence[int], errors: Sequence[float]) -> Choices:
    """Return the front of one unit.

    Args:
        unit: index of the unit in the space.
        levels: indices of the levels that may be chosen.
        costs: cost of each of these levels.
        errors: finite error of each of these levels.
    """
    cost_N, error_N = np.array(costs, np.int64), np.array(errors, np.float64)
    kept = _undominated(cost_N, error_N)
    hull = Hull.of(zip(costs, errors, strict=True))
    return Choices(cost_N[kept], error_N[kept], hull, OfUnit(unit, np.array(levels, np.int64)[kept]))


def either(first: Choices, second: Choices) -> Choices:
    """Return the front of the states of two alternatives, of which one is chosen."""
    cost_N = np.concatenate([first.cost, second.cost])
    error_N = np.concatenate([first.error, second.error])
    kept = _undominated(cost_N, error_N)
    corners = [
        point for part in (first, second) for point in zip(part.hull.cost, part.hull.error, strict=True)
    ]
    origin = OfEither(first.origin, second.origin, len(first), kept)
    return Choices(cost_N[kept], error_N[kept], Hull.of(corners), origin, first.exact and second.exact)


def together(parts: Sequence[Choices], quantum: int, most_states: int) -> Choices:
    """Return the front of all parts together; parts are combined in pairs so that few combinations are large."""
    parts = list(parts)
    while len(parts) > 1:
        sums = [both(a, b, quantum, most_states) for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = [*sums, *parts[2 * len(sums) :]]
    return parts[0]


def both(first: Choices, second: Choices, quantum: int, most_states: int) -> Choices:
    """Return the front of two parts together.

    All pairs of states are compared if there are few of them. Otherwise a grid of cost cells keeps the best pair of
    each cell.

    Args:
        first: front of one part of the space.
        second: front of another part.
        quantum: wanted width of a cell in units of cost. Cells are wider if the parts have few states, and narrower if
            the parts cost little. If the common divisor of all costs is more than half the width, it is the width
            instead, and the grid loses no states.
        most_states: largest number of pairs that are all compared if a grid would lose states. If a grid loses none,
            the largest number is a sixteenth of that, because a grid is faster for more pairs.
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
    """A grid of cost cells for two parts; the costs of each part are counted from its cheapest state.

    Attributes:
        first: front of the first part.
        second: front of the second part.
        width: width of a cell in units of cost.
        cell_A: cell of each state of the first part.
        cell_B: cell of each state of the second part.
        lossless: whether all states of a cell have the same cost, so that no non-dominated state is lost.
    """

    first: Choices
    second: Choices
    width: int
    cell_A: Ints
    cell_B: Ints
    lossless: bool

    @classmethod
    def over(cls, first: Choices, second: Choices, quantum: int) -> "_Grid":
        """Build the grid of two fronts, with cells of about the width `quantum` or of the common divisor of costs."""
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
        """Number of cells that the summed costs fall into."""
        return int(self.cell_A[-1] + self.cell_B[-1]) + 1

    def search(self, hull: Hull, share: Floats) -> tuple[Ints, Ints, bool]:
        """Find the best pair of states, one of each part, in each cell of the summed cost.

        For each cell of the sum, cells of the first part are tried from the tangent of the hulls outwards. The search
        stops when the bounds show that all pairs further out are dominated. Dominated cells are left out.

        Args:
            hull: lower convex hull of the sum.
            share: cost of the first part at each point of the hull.

        Returns:
            Index of the first part's state in each pair (N,), that of the second part's state (N,), and whether the
            result is exact.
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
        """Choose one state for each of the C cells of a part, and move its error to the lower edge of the cell.

        The state of a cell is the one nearest the hull. Its error at the edge is found by moving it along the hull from
        its own cost to the edge.

        Args:
            part: front of the part.
            cell_N: cell of each state of the front.

        Returns:
            Error of each cell's state at the edge (C + 2,), bound at the edge (C + 2,), which is the hull's error, and
            index of each cell's state (C,). Errors and bounds begin and end with an additional infinite value.
        """
        size = int(cell_N[-1]) + 1
        state, error, bound = np.zeros(size, np.int64), np.full(size + 2, np.inf), np.full(size + 2, np.inf)
        bound[1:-1] = part.hull.at(part.cost[0] + self.width * np.arange(size))
        above_N = part.hull.at(part.cost) - bound[1 + cell_N]
        error_N = part.error - above_N
        order = np.arange(len(part))
        if not self.lossless:  # the last state written to a cell stays, and both ends of the front must stay
            order = np.concatenate([np.argsort(-error_N, kind="stable"), [len(part) - 1, 0]])
        state[cell_N[order]] = order
        error[1 + cell_N[order]] = error_N[order]
        return error, bound, state


def _undominated(cost_N: Ints, error_N: Floats) -> Ints:
    """Return the indices of the non-dominated states in order of cost."""
    order: Ints = np.argsort(cost_N, kind="stable")
    error = error_N[order]
    below = np.minimum.accumulate(error)
    kept: Ints = order[np.concatenate([[True], error[1:] < below[:-1]])]
    last_of_cost = np.concatenate([cost_N[kept][1:] != cost_N[kept][:-1], [True]])
    found: Ints = kept[last_of_cost]
    return found
