"""What changes that were measured one at a time say about profiles' surroundings, as errors for the allocation."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ...evaluators.trial import Fidelity
from ...spaces.space import Profile, Space
from ..allocation.sensitivity import Probe, Sensitivity, probes
from ..asking.calibration_sequences import Workload
from ..asking.turns import Request
from .merging import Floats, Measurement, merge
from .stepping import single_steps

CAUTION = (0.0, 0.1, 0.3)
"""Spreads of a single step's change that every unit has to gain by one, one proposal each."""


class MeasuredGuide:
    """Changes of single units around the dearest profile, all of them, and around others, to neighbouring levels.

    All that were measured, near ones weighing most, make one table for each profile asked about (`merging.py`).

    Args:
        space: of the profiles.
        dearest: every unit at its dearest level.
        length: tokens of a sequence.

    Attributes:
        shared: whether what is found around one budget's profile is of use for its neighbours.
        proposals: how many `tables` there are.
    """

    shared = True
    proposals = len(CAUTION)

    def __init__(self, space: Space, dearest: Profile, length: int) -> None:
        self.space = space
        self.dearest = dearest
        self.length = length
        self._sensitivities: list[Sensitivity] = []
        self._measurements: list[Measurement] = []

    def requests(self, base: Profile | None, fidelity: Fidelity) -> list[Request]:
        """What to ask around a base, or at first (None)."""
        around = self.dearest if base is None else base
        return [(p, fidelity) for p in [around, *(probe.profile for probe in self._probes(base))]]

    def workload(self, fidelity: Fidelity, *, first: bool) -> Workload:
        """Most that these requests ask."""
        units = self.space.units
        moves = (len(u.levels) - 1 if first else max(len(v.neighbours) for v in u.levels) for u in units)
        return Workload().add(1 + sum(moves), fidelity)

    def knows(self, base: Profile, fidelity: Fidelity) -> bool:
        """Whether nothing new would come of asking around a base; what is known costs nothing to ask."""
        del base, fidelity
        return False

    def take(self, base: Profile | None, fidelity: Fidelity, measured: Mapping[Profile, float]) -> None:
        """Keep the answers."""
        around = self.dearest if base is None else base
        found = [(probe, measured[probe.profile]) for probe in self._probes(base)]
        self._keep(Sensitivity.of(self.space, around, fidelity.tokens, measured[around], found))

    def forget(self, but: Collection[Profile]) -> None:
        """Forget nothing: measurements around other profiles are still of use."""

    def first_errors(self) -> Floats:
        """Errors (U, L) around the dearest profile."""
        return self._table(self._measurements[0].fitness)

    def errors(self, base: Profile, fitness: float) -> Floats:
        """Errors (U, L) around a base of this fitness."""
        del base
        return self._table(fitness)

    def tables(self, base: Profile, fitness: float) -> list[Floats]:
        """Errors whose optima are worth trying: one step from the base, every unit that leaves it with some gain."""
        errors_UL = self._table(fitness)
        return [single_steps(self.space, errors_UL, base, caution) for caution in CAUTION]

    def state_dict(self) -> dict[str, Any]:
        """Everything that is known, as JSON values."""
        return {"sensitivities": [found.to_json() for found in self._sensitivities]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self._sensitivities, self._measurements = [], []
        for record in state["sensitivities"]:
            self._keep(Sensitivity.from_json(record))

    def _probes(self, base: Profile | None) -> Sequence[Probe]:
        around, near = (self.dearest, False) if base is None else (base, True)
        return list(probes(self.space, around, near=near))

    def _keep(self, sensitivity: Sensitivity) -> None:
        self._sensitivities.append(sensitivity)
        self._measurements.append(Measurement.of(self.space, sensitivity, self.length))

    def _table(self, fitness: float) -> Floats:
        return merge(self.space, self._measurements, fitness, self.dearest)
