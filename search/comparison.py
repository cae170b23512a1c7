"""What scores are worth: how they rank levels and units, and what the exact allocation makes of them."""

import statistics
from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from ..spaces.space import Limits, Profile, Space
from .allocation import PredictedFront, allocate, allocate_limits
from .moves import dress
from .sensitivity import Sensitivity


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


def allocated(space: Space, score: Sensitivity, limits: Limits) -> Profile:
    """The profile within `limits` of smallest summed score; units under a dropped branch as in uniform.

    Raises:
        ValueError: a unit has no score, or no profile is within the limits.
    """
    errors = score.errors(space)
    if len(limits) > 1:
        profile = allocate_limits(space, errors, limits)
    else:
        ((kind, limit),) = limits.items()
        profile = allocate(space, errors, kind).best(limit)
    return dress(space, profile, space.uniform(limits))


def predicted(space: Space, measured: Sensitivity, profile: Profile) -> float:
    """The base's fitness and the changes of all units that count, as if they added up; may be infinite."""
    errors = measured.errors(space)
    active = [u for u in range(len(space.units)) if space.active(profile, u)]
    return measured.fitness + sum(errors[u][profile[u]] for u in active)


def cheapest_within(
    space: Space, measured: Sensitivity, kind: str, bound: float
) -> tuple[Profile, int, float]:
    """The cheapest profile whose predicted fitness is at most `bound`, as L-GreCo asks.

    Returns:
        The profile, its cost of `kind`, its predicted fitness.

    Raises:
        ValueError: even the best profile is predicted to be worse.

    References:
        L-GreCo (arXiv 2210.17357): least size under a bound on the summed error.
    """
    front = allocate(space, measured.errors(space), kind)
    within = np.flatnonzero(measured.fitness + front.errors <= bound)
    if not len(within):
        best = measured.fitness + float(front.errors[-1])
        raise ValueError(
            f"fitness {bound:g} cannot be reached: the best profile is predicted to have {best:.6g}; raise the "
            "bound or add dearer levels"
        )
    return _point(space, front, int(within[0]), kind, measured.fitness)


def _point(
    space: Space, front: PredictedFront, index: int, kind: str, fitness: float
) -> tuple[Profile, int, float]:
    profile = front.profile(index)
    return profile, space.cost(profile, kind), fitness + float(front.errors[index])
