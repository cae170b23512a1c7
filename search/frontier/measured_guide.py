"""Errors for the allocation from changes of single units that were measured one at a time."""

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
"""Extra errors that `single_steps` charges for every step, in spreads of all steps' changes, each for one proposal."""


class MeasuredGuide:
    """Predicts errors from measured changes of single units.

    Around the dearest profile each unit is moved to all its other levels, around other profiles to neighbouring levels
    only. All measurements are merged into one table of errors for profiles of a given fitness (`merging.py`).

    Args:
        space: space of the profiles.
        dearest: profile with every unit at its dearest level.
        length: number of tokens of a sequence.

    Attributes:
        shared: whether findings around one budget's profile are used for neighbouring budgets too.
        proposals: number of tables that `tables` returns.
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
        """Return the requests around a base, or around the dearest profile if the base is None.

        The first request is the base itself, the others are the base with one unit moved.
        """
        around = self.dearest if base is None else base
        return [(p, fidelity) for p in [around, *(probe.profile for probe in self._probes(base))]]

    def workload(self, fidelity: Fidelity, *, first: bool) -> Workload:
        """Return an upper bound of the work of the requests around one base."""
        units = self.space.units
        moves = (len(u.levels) - 1 if first else max(len(v.neighbours) for v in u.levels) for u in units)
        return Workload().add(1 + sum(moves), fidelity)

    def knows(self, base: Profile, fidelity: Fidelity) -> bool:
        """Return False: a trial with a known answer may be asked again, as it is not evaluated again."""
        del base, fidelity
        return False

    def take(self, base: Profile | None, fidelity: Fidelity, measured: Mapping[Profile, float]) -> None:
        """Keep the fitness of every profile that was requested around a base (None for the dearest profile)."""
        around = self.dearest if base is None else base
        found = [(probe, measured[probe.profile]) for probe in self._probes(base)]
        self._keep(Sensitivity.of(self.space, around, fidelity.tokens, measured[around], found))

    def forget(self, but: Collection[Profile]) -> None:
        """Forget nothing, because measurements around all profiles enter the tables."""

    def first_errors(self) -> Floats:
        """Return the errors (U, L) for profiles whose fitness is near that of the dearest profile."""
        return self._table(self._measurements[0].fitness)

    def errors(self, base: Profile, fitness: float) -> Floats:
        """Return the errors (U, L) for profiles whose fitness is near `fitness`, that of the base."""
        del base
        return self._table(fitness)

    def tables(self, base: Profile, fitness: float) -> list[Floats]:
        """Return one table of errors (U, L) of single steps for each value of `CAUTION`.

        The optimum of each table is one proposal.
        """
        errors_UL = self._table(fitness)
        return [single_steps(self.space, errors_UL, base, caution) for caution in CAUTION]

    def state_dict(self) -> dict[str, Any]:
        """Return all measurements as JSON values."""
        return {"sensitivities": [found.to_json() for found in self._sensitivities]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the measurements that `state_dict` returned."""
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
