"""Errors for the allocation, predicted from slopes around the dense model and around profiles.

Array names end in their axes: U units, L levels of a unit. Units with fewer levels than others are padded.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...evaluators.slopes.slope_trial import Slopes, SlopeTrial
from ...evaluators.trial import Fidelity
from ...spaces.space import DENSE, Profile, Space
from ..asking.calibration_sequences import Workload, slope_tokens
from ..asking.turns import Request
from .stepping import single_steps

Floats = npt.NDArray[np.float64]

CURVATURE = (0.7, 1.0, 1.4)
"""Factors of the second-order term, each for one proposal; a larger factor keeps the proposal nearer to the base."""

CAUTION = (0.0, 0.1, 0.3, 1.0)
"""Extra errors that `single_steps` charges for every step, in spreads of all steps' changes, each for one proposal."""


@dataclass(frozen=True)
class Surroundings:
    """Slopes around a profile, with the sequences that they were measured on.

    Attributes:
        base: profile that the slopes are around; `DENSE` for the dense model.
        fidelity: sequences that the slopes were measured on.
        slopes: slopes of all units whose layers run in the base.
    """

    base: Profile
    fidelity: Fidelity
    slopes: Slopes

    def within(self, base: Profile, fidelity: Fidelity) -> bool:
        """Return whether these are slopes around `base` on sequences that all belong to `fidelity`."""
        here = self.fidelity
        return self.base == base and fidelity.start <= here.start and here.stop <= fidelity.stop

    def to_json(self) -> dict[str, Any]:
        """Return the slopes as JSON values."""
        return {
            "base": list(self.base),
            "fidelity": list(astuple(self.fidelity)),
            "slopes": asdict(self.slopes),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Surroundings":
        """Build the slopes from what `to_json` returned."""
        return cls(tuple(record["base"]), Fidelity(*record["fidelity"]), Slopes(**record["slopes"]))


def has_slopes(space: Space) -> bool:
    """Return whether slopes are of use in a space: not all its units are branches.

    The effect of dropping a branch is far from second order, and there are few enough branches to measure each.
    """
    return not all(u.droppable for u in space.units)


class SlopeGuide:
    """Predicts errors from slopes around the dense model and around profiles.

    Attributes:
        shared: whether findings around one budget's profile are used for neighbouring budgets too.
        proposals: number of tables that `tables` returns.
    """

    shared = False
    proposals = len(CURVATURE) + len(CAUTION)

    def __init__(self, space: Space) -> None:
        self.space = space
        self._survey: Surroundings | None = None
        self._known: list[Surroundings] = []

    def requests(self, base: Profile | None, fidelity: Fidelity) -> list[Request]:
        """Return the request for slopes around a base, or around the dense model if the base is None."""
        return [(DENSE if base is None else base, fidelity, SlopeTrial)]

    def workload(self, fidelity: Fidelity, *, first: bool) -> Workload:
        """Return the work of one request for slopes: one trial, and its tokens times the passes that slopes take."""
        del first
        return Workload(1, slope_tokens(self.space, fidelity))

    def knows(self, base: Profile, fidelity: Fidelity) -> bool:
        """Return whether the slopes around a base on these sequences are known already."""
        return any(found.base == base and found.fidelity == fidelity for found in self._known)

    def take(self, base: Profile | None, fidelity: Fidelity, slopes: Slopes) -> None:
        """Keep the slopes around a base (None for the dense model).

        They replace slopes around the same base that were measured on part of the same sequences.
        """
        if base is None:
            self._survey = Surroundings(DENSE, fidelity, slopes)
            return
        self._known = [found for found in self._known if not found.within(base, fidelity)]
        self._known.append(Surroundings(base, fidelity, slopes))

    def forget(self, but: Collection[Profile]) -> None:
        """Forget the slopes around all profiles except the given ones."""
        self._known = [found for found in self._known if found.base in but]

    def first_errors(self) -> Floats:
        """Return the errors (U, L) predicted around the dense model; infinite where no slope is known."""
        assert self._survey is not None
        slopes = self._survey.slopes
        errors_UL = _levels(self.space, slopes.first) + _levels(self.space, slopes.second)
        for u, unit in enumerate(self.space.units):
            for label in ("keep", "dense"):
                if label in unit.index:
                    errors_UL[u, unit.index[label]] = 0.0
        return np.nan_to_num(errors_UL, nan=math.inf)

    def errors(self, base: Profile, fitness: float = 0.0, curvature: float = 1.0) -> Floats:
        """Return the predicted changes (U, L) of the fitness when one unit leaves the base for a level.

        All slopes around the base are averaged, weighted by their tokens. A change without a slope around the base, as
        for units under a dropped branch, is predicted from the slopes around the dense model.

        Args:
            base: profile that the changes start from.
            fitness: fitness of the base, which slopes do not need.
            curvature: factor of the second-order term.
        """
        del fitness
        base_U, units_U = np.array(base), np.arange(len(base))
        dense_UL = self.first_errors()
        changes_UL = dense_UL - dense_UL[units_U, base_U][:, None]
        if known := [found for found in self._known if found.base == base]:
            tokens = np.array([found.fidelity.tokens for found in known], np.float64)
            each = [
                _levels(self.space, found.slopes.first) + curvature * _levels(self.space, found.slopes.second)
                for found in known
            ]
            here_UL = np.average(np.array(each), axis=0, weights=tokens)
            changes_UL = np.where(np.isnan(here_UL), changes_UL, here_UL)
        changes_UL[units_U, base_U] = 0.0
        return np.asarray(changes_UL, np.float64)

    def tables(self, base: Profile, fitness: float) -> list[Floats]:
        """Return tables of errors (U, L); the optimum of each is one proposal.

        They are one table for each factor in `CURVATURE` and one of single steps for each value of `CAUTION`.
        """
        errors_UL = self.errors(base, fitness)
        return [
            *(self.errors(base, fitness, curvature) for curvature in CURVATURE),
            *(single_steps(self.space, errors_UL, base, caution) for caution in CAUTION),
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return all known slopes as JSON values."""
        survey = None if self._survey is None else self._survey.to_json()
        return {"survey": survey, "known": [found.to_json() for found in self._known]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the slopes that `state_dict` returned."""
        survey = state["survey"]
        self._survey = None if survey is None else Surroundings.from_json(survey)
        self._known = [Surroundings.from_json(record) for record in state["known"]]


def _levels(space: Space, changes: Mapping[str, Mapping[str, float]]) -> Floats:
    """Return changes by unit name and label as an array (U, L), NaN where there is none."""
    found_UL = np.full((len(space.units), max(len(unit.levels) for unit in space.units)), np.nan)
    for u, unit in enumerate(space.units):
        for label, change in changes[unit.name].items():
            found_UL[u, unit.index[label]] = change
    return found_UL
