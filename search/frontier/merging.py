"""Measurements around several profiles as one table of errors per unit and level.

Array names carry their axes: U units, L levels (short ladders padded).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...spaces.space import Profile, Space
from ..allocation.sensitivity import Sensitivity

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

_STEADY = 8
"""Sequences up to which measured errors and their smooth part count the same; beyond, the measured count more."""


_SWEEPS = 5
"""Number of sweeps of alternating least squares."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """A `Sensitivity` as arrays.

    Attributes:
        fitness: of the base.
        sequences: that each change was measured on.
        base_U: level of every unit in the base.
        changes_UL: change of fitness from the base; NaN where not measured, infinite where that failed.
    """

    fitness: float
    sequences: float
    base_U: Ints
    changes_UL: Floats

    @classmethod
    def of(cls, space: Space, sensitivity: Sensitivity, length: int) -> "Measurement":
        """With sequences of `length` tokens."""
        base_U = np.array([unit.index[sensitivity.base[unit.name]] for unit in space.units])
        changes_UL = np.full((len(base_U), max(len(unit.levels) for unit in space.units)), np.nan)
        for u, unit in enumerate(space.units):
            for label, change in sensitivity.deltas[unit.name].items():
                changes_UL[u, unit.index[label]] = change
        return cls(sensitivity.fitness, sensitivity.tokens / length, base_U, changes_UL)


def merge(space: Space, measurements: Sequence[Measurement], fitness: float, anchor: Profile) -> Floats:
    """One table for profiles of about this fitness.

    A measurement says how much the fitness changes between two levels of a unit while the rest is at the base. What
    a base says about another one's surroundings weakens with the distance of their divergences: a measurement
    weighs its sequences times exp(-|log(its base's fitness / `fitness`)|). Each unit's errors are the weighted least
    squares solution over all its measured differences. Damage done elsewhere scales all effects alike, so before
    a nearer base is added, everything further is scaled to it by regression.

    Args:
        space: of the profiles.
        measurements: around any profiles of the space; the first one measures every level.
        fitness: of the profiles that the table is for.
        anchor: a level of each unit that other levels are compared with.

    Returns:
        Errors (U, L), changes from each unit's anchor; worse than all others for a level whose measurements all failed,
        infinite for one that was not measured.
    """
    anchor_U = np.array(anchor)
    shape = measurements[0].changes_UL.shape
    system = _System(space, shape[1], anchor_U)
    failed_UL = np.zeros(shape, np.bool_)
    sequences = 0.0
    ordered = [
        measurements[0],
        *sorted(measurements[1:], key=lambda m: _nearness(m.fitness, fitness)),
    ]
    for measurement in ordered:
        weight = measurement.sequences * _nearness(measurement.fitness, fitness)
        system.add(measurement.base_U, measurement.changes_UL, weight)
        failed_UL |= np.isposinf(measurement.changes_UL)
        sequences += weight
    errors_UL = _smoothed(space, system.solve(), anchor_U, sequences)
    unknown_UL = np.isnan(errors_UL)
    errors_UL[unknown_UL & failed_UL] = 1.0 + 10.0 * np.abs(errors_UL[~unknown_UL]).sum()
    errors_UL[unknown_UL & ~failed_UL] = math.inf
    return errors_UL


def _nearness(base: float, fitness: float) -> float:
    """exp(-|log(base / fitness)|), 0 where either says nothing."""
    if not (0 < base < math.inf and 0 < fitness < math.inf):
        return 1e-3
    return max(min(base / fitness, fitness / base), 1e-3)


class _System:
    """Normal equations of every unit: for each measured difference, e[level] - e[base] = change."""

    def __init__(self, space: Space, width: int, anchor_U: Ints) -> None:
        units = len(space.units)
        self._anchor_U = anchor_U
        self._units_U = np.arange(units)
        self._left_ULL = np.zeros((units, width, width))
        self._right_UL = np.zeros((units, width))
        self._children = [u for u, unit in enumerate(space.units) if unit.parent is not None]
        self._parents = [p for unit in space.units if (p := unit.parent) is not None]
        self._drop_UL = np.zeros((units, width), np.bool_)
        for u in self._parents:
            for n, level in enumerate(space.units[u].levels):
                self._drop_UL[u, n] = level.label == "drop"

    def add(self, base_U: Ints, changes_UL: Floats, weight: float) -> None:
        """One more base; what is known already is scaled to it first."""
        measured_UL = np.isfinite(changes_UL)
        measured_UL[self._units_U, base_U] = False
        before_UL = self.solve()
        relative_UL = before_UL - before_UL[self._units_U, base_U][:, None]
        common_UL = measured_UL & np.isfinite(relative_UL)
        common_UL[self._parents] = False
        seen, now = relative_UL[common_UL], changes_UL[common_UL]
        if (size := float(seen @ seen)) > 0:
            scale = min(max(float(seen @ now) / size, 0.1), 10.0)
            self._right_UL *= scale
            before_UL *= scale
        weight_UL = weight * measured_UL
        change_UL = np.where(measured_UL, changes_UL + self._inside(base_U, before_UL), 0.0) * weight
        rows = self._units_U
        diagonal = np.arange(measured_UL.shape[1])
        self._left_ULL[:, diagonal, diagonal] += weight_UL
        self._left_ULL[rows, base_U, base_U] += weight_UL.sum(1)
        self._left_ULL[rows, base_U, :] -= weight_UL
        self._left_ULL[rows, :, base_U] -= weight_UL
        self._right_UL += change_UL
        self._right_UL[rows, base_U] -= change_UL.sum(1)

    def _inside(self, base_U: Ints, before_UL: Floats) -> Floats:
        """What the units of a branch cost at the base: gone with a drop, back when the branch is."""
        inside_U = np.zeros(len(base_U))
        known_U = np.nan_to_num(before_UL[self._units_U, base_U])
        np.add.at(inside_U, self._parents, known_U[self._children])
        gone_U = self._drop_UL[self._units_U, base_U]
        signs_UL = self._drop_UL.astype(np.float64) - gone_U[:, None]
        return signs_UL * inside_U[:, None]

    def solve(self) -> Floats:
        """Errors relative to the anchor; NaN where no chain of measurements leads to it."""
        reached_UL = self._reached()
        left_ULL, right_UL = self._left_ULL.copy(), np.where(reached_UL, self._right_UL, 0.0)
        fixed_UL = ~reached_UL
        fixed_UL[self._units_U, self._anchor_U] = True
        left_ULL[fixed_UL] = 0.0
        left_ULL.transpose(0, 2, 1)[fixed_UL] = 0.0
        units, levels = np.nonzero(fixed_UL)
        left_ULL[units, levels, levels] = 1.0
        right_UL[fixed_UL] = 0.0
        solved_UL = np.linalg.solve(left_ULL, right_UL[:, :, None])[:, :, 0]
        return np.where(reached_UL, solved_UL, math.nan).astype(np.float64)

    def _reached(self) -> Bools:
        edges_ULL = self._left_ULL != 0
        reached_UL = np.zeros(self._right_UL.shape, np.bool_)
        reached_UL[self._units_U, self._anchor_U] = True
        for _ in range(reached_UL.shape[1]):
            reached_UL |= (edges_ULL & reached_UL[:, None, :]).any(2)
        return reached_UL


def _smoothed(space: Space, errors_UL: Floats, anchor_U: Ints, sequences: float) -> Floats:
    """Errors drawn towards sensitivity of the unit x severity of the level, among units with the same levels.

    Few sequences measure a single change badly, but a unit's changes rise together and so do a level's.
    """
    smooth = min(0.5, _STEADY / (_STEADY + sequences)) if sequences > 0 else 0.0
    alike: dict[tuple[object, ...], list[int]] = {}
    for u, unit in enumerate(space.units):
        alike.setdefault((anchor_U[u], *(level.label for level in unit.levels)), []).append(u)
    result_UL = errors_UL.copy()
    for units in alike.values():
        levels = [n for n in range(len(space.units[units[0]].levels)) if n != anchor_U[units[0]]]
        part = errors_UL[np.ix_(units, levels)]
        if len(units) > 1 and len(levels) > 1 and np.isfinite(part).all():
            result_UL[np.ix_(units, levels)] = (1 - smooth) * part + smooth * _rank_one(part)
    return result_UL


def _rank_one(part_UL: Floats) -> Floats:
    """The product of a unit's and a level's factor nearest to the errors; the errors where there is none."""
    level_L: Floats = np.asarray(part_UL.mean(0), np.float64)
    for _ in range(_SWEEPS):
        if not (level_L > 0).all():
            return part_UL
        unit_U = np.maximum((part_UL / level_L).mean(1), 0.0)
        if not unit_U.any():
            return part_UL
        level_L = np.asarray(unit_U @ part_UL / (unit_U @ unit_U), np.float64)
    return np.outer(unit_U, level_L)
