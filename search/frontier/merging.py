"""Merging of the changes measured around several profiles into one table of errors per unit and level.

Array names end in their axes: U units, L levels of a unit. Units with fewer levels than others are padded.
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
"""Number of sequences up to which measured and smoothed errors weigh the same; with more, the measured weigh more."""


_SWEEPS = 5
"""Number of sweeps of alternating least squares."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """A `Sensitivity` as arrays.

    Attributes:
        fitness: fitness of the base profile.
        sequences: number of sequences that each change was measured on.
        base_U: level index of every unit in the base profile.
        changes_UL: change of fitness when one unit leaves the base for a level; NaN where it was not measured,
            infinite where the measurement failed.
    """

    fitness: float
    sequences: float
    base_U: Ints
    changes_UL: Floats

    @classmethod
    def of(cls, space: Space, sensitivity: Sensitivity, length: int) -> "Measurement":
        """Build the arrays of a sensitivity that was measured on sequences of `length` tokens."""
        base_U = np.array([unit.index[sensitivity.base[unit.name]] for unit in space.units])
        changes_UL = np.full((len(base_U), max(len(unit.levels) for unit in space.units)), np.nan)
        for u, unit in enumerate(space.units):
            for label, change in sensitivity.deltas[unit.name].items():
                changes_UL[u, unit.index[label]] = change
        return cls(sensitivity.fitness, sensitivity.tokens / length, base_U, changes_UL)


def merge(space: Space, measurements: Sequence[Measurement], fitness: float, anchor: Profile) -> Floats:
    """Merge measurements into one table of errors for profiles of about the given fitness.

    A measurement says how much the fitness changes between two levels of a unit while all other units are as in the
    base. A base says less about other profiles the more its fitness differs from theirs. So a measurement has the
    weight sequences * exp(-|log(fitness of its base / `fitness`)|). The errors of a unit are the weighted least squares
    solution over all its measured differences. Damage in other units scales all effects of a unit alike. Therefore
    bases are added from the furthest to the nearest, and before each one the errors so far are scaled to it by
    regression.

    Args:
        space: space of the profiles.
        measurements: measurements around any profiles of the space; the first one measures every level.
        fitness: fitness of the profiles that the table is for.
        anchor: profile whose level of each unit has the error 0.

    Returns:
        Errors (U, L) as changes of the fitness from each unit's anchor level. A level whose measurements all failed has
        a larger error than all others. A level that was not measured has an infinite error.
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
    """Return exp(-|log(base / fitness)|), at least 0.001; it is 0.001 if either is not positive and finite."""
    if not (0 < base < math.inf and 0 < fitness < math.inf):
        return 1e-3
    return max(min(base / fitness, fitness / base), 1e-3)


class _System:
    """The least squares normal equations of every unit's errors e.

    Each measured change of a unit adds the equation e[level] - e[level in the base] = change.
    """

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
        """Scale the errors so far to the changes measured around one more base, then add these changes.

        Args:
            base_U: level index of every unit in the base.
            changes_UL: measured changes of the fitness from the base; only finite ones are added.
            weight: weight of every one of these changes.
        """
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
        """Return what to add to the measured changes of branches, (U, L), to leave out the errors of their units.

        The errors of a branch's units disappear when the branch is dropped and return when it is kept again.
        """
        inside_U = np.zeros(len(base_U))
        known_U = np.nan_to_num(before_UL[self._units_U, base_U])
        np.add.at(inside_U, self._parents, known_U[self._children])
        gone_U = self._drop_UL[self._units_U, base_U]
        signs_UL = self._drop_UL.astype(np.float64) - gone_U[:, None]
        return signs_UL * inside_U[:, None]

    def solve(self) -> Floats:
        """Return the errors (U, L) relative to the anchor; NaN for a level without a chain of measurements to it."""
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
        """Return which levels (U, L) a chain of measurements links to the anchor level of their unit."""
        edges_ULL = self._left_ULL != 0
        reached_UL = np.zeros(self._right_UL.shape, np.bool_)
        reached_UL[self._units_U, self._anchor_U] = True
        for _ in range(reached_UL.shape[1]):
            reached_UL |= (edges_ULL & reached_UL[:, None, :]).any(2)
        return reached_UL


def _smoothed(space: Space, errors_UL: Floats, anchor_U: Ints, sequences: float) -> Floats:
    """Draw errors towards the product of a factor of the unit and a factor of the level.

    The factors are fitted among units with the same levels and the same anchor level. Few sequences measure a single
    change badly. But a sensitive unit has large errors at all levels, and a severe level has large errors in all units.

    Args:
        space: space of the profiles.
        errors_UL: errors relative to the anchor level of each unit.
        anchor_U: anchor level of each unit.
        sequences: weighted number of sequences behind the errors; the more, the less the errors are changed.
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
    """Return the product of unit factors and level factors that is nearest to the errors.

    The errors are returned unchanged if no positive factors fit them.
    """
    level_L: Floats = np.asarray(part_UL.mean(0), np.float64)
    for _ in range(_SWEEPS):
        if not (level_L > 0).all():
            return part_UL
        unit_U = np.maximum((part_UL / level_L).mean(1), 0.0)
        if not unit_U.any():
            return part_UL
        level_L = np.asarray(unit_U @ part_UL / (unit_U @ unit_U), np.float64)
    return np.outer(unit_U, level_L)
