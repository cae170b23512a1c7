"""What scores are worth: how they rank levels and units, what they predict, and the cheapest profile they promise."""

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
"""Name of the cost kind that errors become where what is minimised is a cost."""


def rank_correlations(measured: Sensitivity, score: Sensitivity) -> tuple[float | None, float | None]:
    """Spearman's rank correlation of a score with measured changes.

    Both are taken relative to the level that the unit has in the measurement's base; that level itself is left
    out, and so is what was not measured.

    Returns:
        Over all levels of all units, and over units (the mean of each unit's levels); None where fewer than
        three can be compared or all are equal.
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
    """The base's fitness and the changes of all units that count, as if they added up; may be infinite."""
    errors = measured.errors(space)
    active = [u for u in range(len(space.units)) if space.active(profile, u)]
    return measured.fitness + sum(errors[u][profile[u]] for u in active)


def cheapest_within(
    space: Space, measured: Sensitivity, kind: str, bound: float, limits: Limits | None = None
) -> tuple[Profile, int, float]:
    """The cheapest profile whose predicted fitness is at most `bound`, as L-GreCo asks.

    Args:
        space: of the profile.
        measured: what predictions are made from.
        kind: kind of cost that is made small.
        bound: of the predicted fitness.
        limits: on other costs; minimum counts are such.

    Returns:
        The profile, its cost of `kind`, its predicted fitness.

    Raises:
        ValueError: even the best profile within `limits` is predicted to be worse.

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
            "bound or add dearer levels"
        )


def _cheapest(space: Space, errors: Errors, kind: str, bound: float, limits: Limits) -> Profile | None:
    """By integer programming, with errors as one more cost: in billionths of the largest, rounded up."""
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
