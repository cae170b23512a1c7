"""What slopes say about profiles' surroundings, as errors for the allocation.

Array names carry their axes: U units, L levels (short ladders padded).
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...evaluators.trial import Fidelity, Slopes
from ...spaces.space import DENSE, Profile, Space
from ..asking.calibration_sequences import Workload, slope_tokens
from ..asking.turns import Request
from .stepping import single_steps

Floats = npt.NDArray[np.float64]

CURVATURE = (0.7, 1.0, 1.4)
"""Multiples of the second order, one proposal each: the more, the nearer to the base."""

CAUTION = (0.0, 0.1, 0.3, 1.0)
"""Spreads of a single step's change that every unit has to gain by one, one proposal each."""


@dataclass(frozen=True)
class Surroundings:
    """Slopes around a profile.

    Attributes:
        base: the profile; `DENSE` for the dense model.
        fidelity: the sequences that they were measured on.
        slopes: of all units whose layers run.
    """

    base: Profile
    fidelity: Fidelity
    slopes: Slopes

    def within(self, base: Profile, fidelity: Fidelity) -> bool:
        """Whether these are slopes around `base` on no other sequences than those of `fidelity`."""
        here = self.fidelity
        return self.base == base and fidelity.start <= here.start and here.stop <= fidelity.stop

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "base": list(self.base),
            "fidelity": list(astuple(self.fidelity)),
            "slopes": asdict(self.slopes),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Surroundings":
        """The reverse of `to_json`."""
        return cls(tuple(record["base"]), Fidelity(*record["fidelity"]), Slopes(**record["slopes"]))


def has_slopes(space: Space) -> bool:
    """Whether slopes are worth asking for: not all units are branches.

    What dropping a branch does is far from second order, and there are few enough to measure each.
    """
    return not all(u.droppable for u in space.units)


class SlopeGuide:
    """Slopes around the dense model and around profiles.

    Attributes:
        shared: whether what is found around one budget's profile is of use for its neighbours.
        proposals: how many `tables` there are.
    """

    shared = False
    proposals = len(CURVATURE) + len(CAUTION)

    def __init__(self, space: Space) -> None:
        self.space = space
        self._survey: Surroundings | None = None
        self._known: list[Surroundings] = []

    def requests(self, base: Profile | None, fidelity: Fidelity) -> list[Request]:
        """What to ask around a base, or at first (None)."""
        return [(DENSE if base is None else base, fidelity, True)]

    def workload(self, fidelity: Fidelity, *, first: bool) -> Workload:
        """Most that these requests ask."""
        del first
        return Workload(1, slope_tokens(self.space, fidelity))

    def knows(self, base: Profile, fidelity: Fidelity) -> bool:
        """Whether nothing new would come of asking around a base."""
        return any(found.base == base and found.fidelity == fidelity for found in self._known)

    def take(self, base: Profile | None, fidelity: Fidelity, slopes: Slopes) -> None:
        """Keep the answer, in place of one that was on part of the same text."""
        if base is None:
            self._survey = Surroundings(DENSE, fidelity, slopes)
            return
        self._known = [found for found in self._known if not found.within(base, fidelity)]
        self._known.append(Surroundings(base, fidelity, slopes))

    def forget(self, but: Collection[Profile]) -> None:
        """Let go of the slopes around all other profiles."""
        self._known = [found for found in self._known if found.base in but]

    def first_errors(self) -> Floats:
        """Errors (U, L) around the dense model; infinite where there is no level."""
        assert self._survey is not None
        slopes = self._survey.slopes
        errors_UL = _levels(self.space, slopes.first) + _levels(self.space, slopes.second)
        for u, unit in enumerate(self.space.units):
            for label in ("keep", "dense"):
                if label in unit.index:
                    errors_UL[u, unit.index[label]] = 0.0
        return np.nan_to_num(errors_UL, nan=math.inf)

    def errors(self, base: Profile, fitness: float = 0.0, curvature: float = 1.0) -> Floats:
        """Changes (U, L) of the fitness from a base, by all slopes around it, second order times `curvature`.

        Where there are none, as for units under a dropped branch, those around the dense model have to do.
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
        """Errors whose optima are worth trying."""
        errors_UL = self.errors(base, fitness)
        return [
            *(self.errors(base, fitness, curvature) for curvature in CURVATURE),
            *(single_steps(self.space, errors_UL, base, caution) for caution in CAUTION),
        ]

    def state_dict(self) -> dict[str, Any]:
        """Everything that is known, as JSON values."""
        survey = None if self._survey is None else self._survey.to_json()
        return {"survey": survey, "known": [found.to_json() for found in self._known]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The reverse of `state_dict`."""
        survey = state["survey"]
        self._survey = None if survey is None else Surroundings.from_json(survey)
        self._known = [Surroundings.from_json(record) for record in state["known"]]


def _levels(space: Space, changes: Mapping[str, Mapping[str, float]]) -> Floats:
    """Shape (U, L); NaN for what is not there."""
    found_UL = np.full((len(space.units), max(len(unit.levels) for unit in space.units)), np.nan)
    for u, unit in enumerate(space.units):
        for label, change in changes[unit.name].items():
            found_UL[u, unit.index[label]] = change
    return found_UL
