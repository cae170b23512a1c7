"""Errors that allow one step from a profile only, so that an optimum stays where they were measured."""

import math

import numpy as np

from ...spaces.space import Profile, Space
from .merging import Floats


def single_steps(space: Space, errors_UL: Floats, base: Profile, caution: float) -> Floats:
    """Infinite errors but for the base's levels and their neighbours; every step has to gain something.

    Errors of single units add up less well the more units move, and the smallest are mostly noise.

    Args:
        space: of the profiles.
        errors_UL: of every level of every unit.
        base: to step from.
        caution: what a step has to gain, in spreads of all single steps' changes: half of what lies between 16 % and 84 % of
            them, a normal distribution's standard deviation, whatever a few failed measurements are counted as.
    """
    near_UL = np.full_like(errors_UL, math.inf)
    for u, (unit, level) in enumerate(zip(space.units, base, strict=True)):
        neighbours = list(unit.levels[level].neighbours)
        near_UL[u, neighbours] = errors_UL[u, neighbours] - errors_UL[u, level]
    steps = near_UL[np.isfinite(near_UL)]
    if len(steps):
        low, high = np.quantile(steps, (0.16, 0.84))
        near_UL += caution * float(high - low) / 2
    near_UL[np.arange(len(base)), np.array(base)] = 0.0
    return near_UL
