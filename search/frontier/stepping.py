"""Tables of errors that allow each unit at most one step from a base profile, near which the errors were measured."""

import math

import numpy as np

from ...spaces.space import Profile, Space
from .merging import Floats


def single_steps(space: Space, errors_UL: Floats, base: Profile, caution: float) -> Floats:
    """Return the changes (U, L) of the errors from a base profile, infinite except for single steps.

    A single step moves a unit to a neighbouring level. Every step is charged an extra error, so that an allocation
    makes only steps with a larger gain. The reason is that the errors of single units add up less well the more units
    move, and that the smallest changes are mostly noise.

    Args:
        space: space of the profiles.
        errors_UL: errors of every level of every unit.
        base: profile that the steps start from; its own levels get the change 0.
        caution: extra error of a step in spreads. A spread is half the distance between the 16 % and the 84 % quantile
            of the changes of all single steps. For a normal distribution this is the standard deviation, and a few
            failed measurements with huge errors do not affect it.
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
