"""Choice of one level per unit under several limits at once, by integer programming."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

TRIES = 20
"""Largest number of solver runs, each with tighter limits than the one before, to find a feasible answer."""

NODES = 100_000
"""Largest number of nodes in the solver's tree; a limit in seconds would make the answer depend on the machine."""


def minimise(
    values: Sequence[Sequence[float]],
    costs: Sequence[Sequence[Sequence[int]]],
    room: Sequence[int],
    drops: Mapping[int, tuple[int, int]],
    excess: Callable[[list[int]], Sequence[int]],
) -> list[int] | None:
    """Choose one level per unit so that all limits hold and the values of the chosen levels have the smallest sum.

    There is one binary variable for every unit and level with a finite value. A unit under a branch has a level if and
    only if the branch is kept. The solver works to a tolerance, so `excess` checks its answer in exact integers. Where
    the answer exceeds a limit, that limit is tightened by the excess and the solver runs again.

    Args:
        values: one value per unit and level; an infinite value excludes the level.
        costs: for each limit, one cost per unit and level.
        room: for each limit, the cost that remains after the fixed cost is subtracted.
        drops: maps each unit under a droppable branch to the index of the branch's unit and of its `drop` level.
        excess: function that returns by how much the given levels exceed each limit, exactly; a value of at most 0
            means that the limit holds.

    Returns:
        The level of each unit, 0 where its branch is dropped, or None if no levels within the limits were found.
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
    """Build the constraint that each unit has exactly one level, or that its branch is dropped.

    Args:
        units: number of units in the program.
        number: maps each pair of unit and level to the index of its variable.
        drops: maps each unit under a droppable branch to the index of the branch's unit and of its `drop` level.
    """
    rows, cols = zip(*((u, i) for (u, _), i in number.items()), strict=True)
    entries = [*zip(rows, cols, strict=True)]
    entries += [(u, number[dropped]) for u, dropped in drops.items() if dropped in number]
    row, col = np.array(entries).T
    matrix = csr_array((np.ones(len(row)), (row, col)), shape=(units, len(number)))
    return LinearConstraint(matrix, lb=1, ub=1)
