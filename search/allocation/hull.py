"""Lower convex hulls of fronts, which bound the error of all choices from below at any cost.

For a multiplier m >= 0, the smallest value of error + m * cost over a sum of fronts is the sum of each front's smallest
value. So the hull of a sum consists of the pieces of its parts' hulls, steepest first. Its value at a cost is the
Lagrangian bound: no choice that costs at most as much has a smaller error.

References:
    Everett (1963), "Generalized Lagrange multiplier method for solving problems of optimum allocation of resources".
    Sinha and Zoltners (1979), "The multiple-choice knapsack problem".
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Hull:
    """The lower convex hull of a front, as a chain of points.

    Attributes:
        cost: cost of each point, (points,), rising.
        error: error of each point, (points,), falling ever more slowly.
    """

    cost: Floats
    error: Floats

    @classmethod
    def of(cls, points: Iterable[tuple[float, float]]) -> "Hull":
        """Build the lower hull of at least one (cost, error) point."""
        chain: list[tuple[float, float]] = []
        for cost, error in sorted(points):
            if chain and error >= chain[-1][1]:
                continue
            while len(chain) > 1 and _above(chain[-2], chain[-1], (cost, error)):
                chain.pop()
            chain.append((cost, error))
        cost_N, error_N = np.array(chain, float).T
        return cls(cost_N, error_N)

    def at(self, cost: npt.ArrayLike) -> Floats:
        """Return the hull's error at each cost; infinite below the cheapest point, the last error above the dearest."""
        return np.asarray(
            np.interp(np.asarray(cost, np.float64), self.cost, self.error, left=np.inf), np.float64
        )

    def plus(self, other: "Hull") -> tuple["Hull", Floats]:
        """Return the hull of the sum of two fronts and, for each point of that hull, the cost that this front adds."""
        cost_S = np.concatenate([np.diff(self.cost), np.diff(other.cost)])
        error_S = np.concatenate([np.diff(self.error), np.diff(other.error)])
        order_S = np.argsort(error_S / cost_S, kind="stable")
        mine_S = np.where(order_S < len(self.cost) - 1, cost_S[order_S], 0.0)
        cost = _running(self.cost[0] + other.cost[0], cost_S[order_S])
        error = _running(self.error[0] + other.error[0], error_S[order_S])
        return Hull(cost, error), _running(self.cost[0], mine_S)


def _above(first: tuple[float, float], middle: tuple[float, float], last: tuple[float, float]) -> bool:
    """Return whether the middle point lies on or above the line through the others."""
    fall = (first[1] - middle[1]) * (last[0] - middle[0])
    return fall <= (middle[1] - last[1]) * (middle[0] - first[0])


def _running(start: float, steps: Floats) -> Floats:
    """Return the values that begin at `start` and change by one step after the other."""
    return np.concatenate([[start], start + np.cumsum(steps)])
