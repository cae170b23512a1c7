"""Comparison of scores with measurements: rank correlations, predicted fitness, and cheapest predicted profiles."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import spearmanr

from ...spaces.space import Limits, Profile, Space
from ..allocation.allocation import Errors, allocate, allocate_limits
from ..allocation.sensitivity import Sensitivity

_ERROR = "error"
"""Name of the cost kind that stands for the summed error while another cost is minimised."""


def rank_correlations(measured: Sensitivity, score: Sensitivity) -> tuple[float | None, float | None]:
    """Compute Spearman's rank correlations of a score with measured changes of fitness.

    Both are taken relative to the level that the unit has in the base of the measurement. This level and levels that
    were not measured are left out.

    Args:
        measured: measured changes of fitness of the levels.
        score: score of the same units and levels.

    Returns:
        The correlation over all levels of all units, and that over units, each by the mean of its levels. A correlation
        is None if fewer than three values can be compared or all values of one side are equal.
    """
    units: list[tuple[list[float], list[float]]] = []
    for name, base in measured.base.items():
        found, scored = measured.deltas[name], score.deltas[name]
        labels = [label for label in found if label != base and label in scored]
        if labels and base in scored:
            changes = [scored[label] - scored[base] for label in labels]
            units.append(([found[label] for label in labels], changes))
    levels = _spearman([d for row, _ in units for d in row], [d for _, row in units for d in row])
    means = [[statistics.fmean(row) for row in rows] for rows in zip(*units, strict=True)]
    return levels, _spearman(means[0], means[1]) if means else None


def _spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    return float(spearmanr(first, second).statistic)


def predicted(space: Space, measured: Sensitivity, profile: Profile) -> float:
    """Return the predicted fitness of a profile: the base's fitness plus the measured changes of all active units.

    The fitness is infinite if a level of the profile was not measured.
    """
    errors = measured.errors(space)
    active = [u for u in range(len(space.units)) if space.active(profile, u)]
    return measured.fitness + sum(errors[u][profile[u]] for u in active)


def cheapest_within(
    space: Space, measured: Sensitivity, kind: str, bound: float, limits: Limits | None = None
) -> tuple[Profile, int, float]:
    """Find the cheapest profile whose predicted fitness is at most `bound`.

    Args:
        space: space of the profile.
        measured: measurements that the fitness is predicted from.
        kind: kind of cost that is minimised.
        bound: largest predicted fitness allowed.
        limits: limits on other costs, such as minimum counts.

    Returns:
        The profile, its cost of `kind` and its predicted fitness.

    Raises:
        ValueError: even the best profile within `limits` has a predicted fitness above `bound`.

    References:
        L-GreCo (arXiv 2210.17357): least size under a bound on the summed error.
    """
    errors = measured.errors(space)
    if limits:
        best = allocate_limits(space, errors, limits)
        _refuse_below(bound, predicted(space, measured, best))
        profile = _cheapest(space, errors, kind, bound - measured.fitness, limits) or best
    else:
        front = allocate(space, errors, kind)
        fitness_N = measured.fitness + front.errors
        _refuse_below(bound, float(fitness_N[-1]))
        profile = front.profile(int(np.flatnonzero(fitness_N <= bound)[0]))
    return profile, space.cost(profile, kind), predicted(space, measured, profile)


def _refuse_below(bound: float, best: float) -> None:
    if best > bound:
        raise ValueError(
            f"fitness {bound:g} cannot be reached: the best profile is predicted to have {best:.6g}; raise the "
            "bound or add more expensive levels"
        )


def _cheapest(space: Space, errors: Errors, kind: str, bound: float, limits: Limits) -> Profile | None:
    """Find the cheapest profile by integer programming, with the summed error at most `bound` as one more limit.

    Errors become integer costs, rounded up. Their unit is 2^-30, about a billionth, of the largest error or of the
    bound, whichever is larger. None is returned if no profile was found.
    """
    largest = max(abs(error) for row in errors for error in row if error < math.inf)
    quantum = max(largest, abs(bound), 1e-300) / 2**30
    units, costs = [], []
    for unit, row in zip(space.units, errors, strict=True):
        prices = [math.ceil(error / quantum) if error < math.inf else 0 for error in row]
        priced = zip(unit.levels, prices, strict=True)
        levels = tuple(replace(level, costs={**level.costs, _ERROR: price}) for level, price in priced)
        units.append(replace(unit, levels=levels))
        own = [float(level.costs[kind]) for level in levels]
        costs.append([cost if error < math.inf else math.inf for cost, error in zip(own, row, strict=True)])
    return replace(space, units=tuple(units)).minimise(costs, {**limits, _ERROR: math.floor(bound / quantum)})
