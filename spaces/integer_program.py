"""One choice for each of several units under several limits at once, by integer programming."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

TRIES = 20
"""Solver runs with tightened limits before the search for a feasible answer ends."""

NODES = 100_000
"""Bound of the solver's tree; in nodes, not seconds, so that the answer does not depend on the machine."""


def minimise(
    values: Sequence[Sequence[float]],
    costs: Sequence[Sequence[Sequence[int]]],
    room: Sequence[int],
    drops: Mapping[int, tuple[int, int]],
    excess: Callable[[list[int]], Sequence[int]],
) -> list[int] | None:
    """The choices within all limits whose values have the smallest sum.

    One binary variable stands for every unit and level with a finite value; a unit under a branch has a level exactly
    where the branch is not dropped. The solver works to a tolerance, so its answer is checked in integers by `excess`, and
    the limits are tightened by what was exceeded.

    Args:
        values: value of every unit and level.
        costs: for each limit the cost of every unit and level.
        room: each limit, less the cost of what is not chosen here.
        drops: unit to the unit of its branch and the level that drops it, for the units that can be dropped.
        excess: by how much some choices exceed each limit, exactly; at most 0 where they do not.

    Returns:
        The level of each unit, 0 where its branch is dropped; None if no choices within the limits were found.
    """
    columns = [(u, n) for u, row in enumerate(values) for n, e in enumerate(row) if e < math.inf]
    number = {column: i for i, column in enumerate(columns)}
    one = _one_level_each(len(values), number, drops)
    cost = np.array([[table[u][n] for u, n in columns] for table in costs], float)
    left = np.array(room, float)
    value = np.array([values[u][n] for u, n in columns])
    scale = 1.0 / np.maximum(np.abs(left), 1.0)
    for _ in range(TRIES):
        answer = milp(
            value / max(float(np.abs(value).max()), 1e-300),
            integrality=np.ones(len(columns), np.int64),
            bounds=Bounds(0, 1),
            constraints=[one, LinearConstraint(cost * scale[:, None], ub=left * scale)],
            options={"mip_rel_gap": 1e-6, "node_limit": NODES},
        )
        if answer.x is None:
            break
        levels = [0] * len(values)
        for (u, n), x in zip(columns, answer.x, strict=True):
            if x > 0.5:
                levels[u] = n
        exceeded = np.array(excess(levels), float)
        if exceeded.max() <= 0:
            return levels
        left -= np.maximum(exceeded, 0)
    return None


def _one_level_each(
    units: int, number: Mapping[tuple[int, int], int], drops: Mapping[int, tuple[int, int]]
) -> LinearConstraint:
    rows, cols = zip(*((u, i) for (u, _), i in number.items()), strict=True)
    entries = [*zip(rows, cols, strict=True)]
    entries += [(u, number[dropped]) for u, dropped in drops.items() if dropped in number]
    row, col = np.array(entries).T
    matrix = csr_array((np.ones(len(row)), (row, col)), shape=(units, len(number)))
    return LinearConstraint(matrix, lb=1, ub=1)
