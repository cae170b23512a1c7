"""Profiles under several limits at once, by integer programming."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

if TYPE_CHECKING:
    from .space import Limits, Profile, Space

TRIES = 20
"""Solver runs with tightened limits before the search for a feasible answer ends."""

NODES = 100_000
"""Bound of the solver's tree; in nodes, not seconds, so that the answer does not depend on the machine."""


def minimise(space: "Space", values: Sequence[Sequence[float]], limits: "Limits") -> "Profile | None":
    """The profile within `limits` whose values, one per unit and level, have the smallest sum.

    One binary variable per unit and level with a finite value; a unit under a branch has a level exactly where the
    branch is not dropped. The solver works to a tolerance, so its answer is checked in integers and limits are
    tightened by what was exceeded.

    Returns:
        A canonical profile, or None if there is none within the limits.
    """
    columns = [(u, n) for u, row in enumerate(values) for n, e in enumerate(row) if e < math.inf]
    number = {column: i for i, column in enumerate(columns)}
    one = _one_level_each(space, number)
    cost = np.array([[space.units[u].levels[n].costs[kind] for u, n in columns] for kind in limits], float)
    room = np.array([limit - space.fixed.get(kind, 0) for kind, limit in limits.items()], float)
    value = np.array([values[u][n] for u, n in columns])
    scale = 1.0 / np.maximum(np.abs(room), 1.0)
    for _ in range(TRIES):
        answer = milp(
            value / max(float(np.abs(value).max()), 1e-300),
            integrality=np.ones(len(columns), np.int64),
            bounds=Bounds(0, 1),
            constraints=[one, LinearConstraint(cost * scale[:, None], ub=room * scale)],
            options={"mip_rel_gap": 1e-6, "node_limit": NODES},
        )
        if answer.x is None:
            break
        levels = [0] * len(space.units)
        for (u, n), x in zip(columns, answer.x, strict=True):
            if x > 0.5:
                levels[u] = n
        profile = space.canonical(tuple(levels))
        excess = np.array([space.cost(profile, k) - limit for k, limit in limits.items()], float)
        if excess.max() <= 0:
            return profile
        room -= np.maximum(excess, 0)
    return None


def _one_level_each(space: "Space", number: dict[tuple[int, int], int]) -> LinearConstraint:
    rows, cols = zip(*((u, i) for (u, _), i in number.items()), strict=True)
    entries = [*zip(rows, cols, strict=True)]
    for u, unit in enumerate(space.units):
        if unit.parent is not None and "drop" in space.units[unit.parent].index:
            dropped = (unit.parent, space.units[unit.parent].index["drop"])
            entries += [(u, number[dropped])] if dropped in number else []
    row, col = np.array(entries).T
    matrix = csr_array((np.ones(len(row)), (row, col)), shape=(len(space.units), len(number)))
    return LinearConstraint(matrix, lb=1, ub=1)
