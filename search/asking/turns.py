"""The base class of searchers: it numbers trials, repeats unanswered ones and has incumbents measured for the archive.

A search method says what to ask next and what it learns from the answers. The base class numbers the trials and asks
unanswered trials again after a restart. It also has every incumbent measured at the archive's fidelity.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ...evaluators.slopes.slope_trial import SlopeEvaluation, Slopes, SlopeTrial
from ...evaluators.trial import Evaluation, Fidelity, Trial
from ...evaluators.trial_kinds import KINDS
from ...spaces.space import Limits, Profile, Space
from .calibration_sequences import CalibrationSequences, Workload

Request = tuple[Profile, Fidelity] | tuple[Profile, Fidelity, type[Trial]]
"""A profile, a fidelity, and the kind of trial if it is not the one that asks for the fitness."""


def starting_profiles(space: Space, limits: Limits, start: Sequence[Profile]) -> list[Profile]:
    """Return the uniform profile, then the profiles of `start`; of profiles that build the same model only the first.

    Raises:
        ValueError: a profile of `start` exceeds the limits, or no profile meets them.
    """
    space.check(limits)
    for profile in start:
        if not space.fits(profile, limits):
            over = next(kind for kind, limit in limits.items() if space.cost(profile, kind) > limit)
            raise ValueError(
                f"a start profile costs {space.cost(profile, over)} {over}, over the limit of {limits[over]}; "
                "start only from profiles within the limits"
            )
    found: dict[Profile, Profile] = {}
    for profile in [space.uniform(limits), *start]:
        found.setdefault(space.canonical(profile), profile)
    return list(found.values())


class Turns(ABC):
    """Base class of searchers; a search method implements `_next`, `_learn`, `_save`, `_load` and `workload`.

    Args:
        space: space of the profiles.
        calibration: calibration sequences to draw on.
        rng_seed: seed of the random numbers.
        starts: profiles that the search begins with.

    Attributes:
        archived: fitness of every profile measured at the archive's fidelity, by canonical profile.
        starts: profiles that the search begins with; the uniform profile is the first.
    """

    leg: ClassVar[int] = 0
    final: ClassVar[bool] = True

    def __init__(
        self, space: Space, calibration: CalibrationSequences, rng_seed: int, starts: Sequence[Profile]
    ) -> None:
        self.space = space
        self.calibration = calibration
        self.rng = np.random.default_rng(rng_seed)
        self.starts = list(starts)
        self.archived: dict[Profile, float] = {}
        self._asked = 0
        self._pending: list[Trial] | None = None
        self._own = 0
        self._owed: list[Profile] = []

    @abstractmethod
    def _next(self) -> list[Request]:
        """Return the next requests, or an empty list at every call once the search is finished."""

    @abstractmethod
    def _learn(self, profiles: list[Profile], fitness: list[float], /) -> None:
        """Take in the answers to the requests of the last `_next` that returned any.

        Args:
            profiles: profiles that were requested.
            fitness: fitness of each profile; infinite if its evaluation failed.
        """

    def _learn_slopes(self, slopes: Sequence[Slopes | None], /) -> None:
        """Take in the answers if all requests of the last `_next` asked for slopes.

        Args:
            slopes: slopes around each requested profile; None if they could not be measured.
        """
        raise NotImplementedError(f"{type(self).__name__} asks for no slopes")

    @abstractmethod
    def _save(self) -> dict[str, Any]:
        """Return the search method's own state as JSON values."""

    @abstractmethod
    def _load(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `_save` returned."""

    @abstractmethod
    def workload(self) -> Workload:
        """Return an upper bound of the trials and tokens of the whole search, including those with known values."""

    @property
    def best(self) -> Profile | None:
        """The profile of lowest finite fitness at the archive's fidelity, or None; of equal ones the earliest."""
        finite = {p: f for p, f in self.archived.items() if f < math.inf}
        return min(finite, key=finite.__getitem__) if finite else None

    def ask(self) -> list[Trial]:
        """Return the next trials, or an empty list when the search is finished.

        The same trials are returned until their evaluations are told.
        """
        if self._pending is None:
            own = self._next()
            requests = own + self._due(own)
            self._own, self._owed = len(own), []
            numbers = range(self._asked, self._asked + len(requests))
            self._pending = [
                _trial(n, *request) for n, request in zip(numbers, requests, strict=True)
            ] or None
            self._asked += len(requests)
        return list(self._pending or [])

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Take in the evaluations of the trials of the last `ask`, in their order.

        Raises:
            ValueError: the evaluations are not those of the trials of the last `ask`.
        """
        wanted = [trial.number for trial in self._pending or []]
        told = [evaluation.trial.number for evaluation in evaluations]
        if told != wanted:
            raise ValueError(
                f"`tell` got trials {told[:3]}..., `ask` gave {wanted[:3]}...; tell all in the order of `ask`"
            )
        self._pending = None
        fitness = [math.inf if e.error is not None else e.fitness for e in evaluations]
        for evaluation, value in zip(evaluations, fitness, strict=True):
            trial = evaluation.trial
            if type(trial) is Trial and trial.fidelity == self.calibration.archive:
                self.archived.setdefault(self.space.canonical(trial.profile), value)
        own = evaluations[: self._own]
        if own and isinstance(own[0].trial, SlopeTrial):
            sums = [e.slopes if isinstance(e, SlopeEvaluation) else None for e in own]
            self._learn_slopes([found.mean() if found is not None else None for found in sums])
        elif own:
            self._learn([e.trial.profile for e in own], fitness[: self._own])

    def _promote(self, profile: Profile) -> None:
        """Have an incumbent measured at the archive's fidelity together with the next trials."""
        self._owed.append(profile)

    def _due(self, own: list[Request]) -> list[Request]:
        """Return the requests for promoted profiles that are neither archived nor among the method's requests."""
        known = set(self.archived)
        known |= {
            self.space.canonical(p) for p, at, *kind in own if at == self.calibration.archive and not kind
        }
        due = {self.space.canonical(p): p for p in self._owed}
        return [(p, self.calibration.archive) for key, p in due.items() if key not in known]

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state of the search as JSON values."""
        pending = None if self._pending is None else [_write_trial(trial) for trial in self._pending]
        return {
            "asked": self._asked,
            "pending": pending,
            "own": self._own,
            "owed": [list(p) for p in self._owed],
            "starts": [list(p) for p in self.starts],
            "archived": [[list(p), write_fitness(f)] for p, f in self.archived.items()],
            "rng": self.rng.bit_generator.state,
            "method": self._save(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state_dict` returned, so that the search continues exactly from there."""
        self._asked = state["asked"]
        self._pending = None if state["pending"] is None else [_read_trial(t) for t in state["pending"]]
        self._own = state["own"]
        self._owed = read_profiles(state["owed"])
        self.starts = read_profiles(state["starts"])
        self.archived = {tuple(p): read_fitness(f) for p, f in state["archived"]}
        self.rng.bit_generator.state = state["rng"]
        self._load(state["method"])


def write_fitness(value: float) -> float | None:
    """Return a fitness as a JSON value: None for infinity, which JSON lacks."""
    return value if value < math.inf else None


def read_fitness(value: float | None) -> float:
    """Return the fitness that `write_fitness` turned into a JSON value."""
    return math.inf if value is None else value


def read_profiles(rows: Iterable[Iterable[int]]) -> list[Profile]:
    """Return profiles that were stored as lists of levels."""
    return [tuple(row) for row in rows]


def _trial(number: int, profile: Profile, fidelity: Fidelity, kind: type[Trial] = Trial) -> Trial:
    return kind(number, profile, fidelity)


def _write_trial(trial: Trial) -> list[Any]:
    f = trial.fidelity
    kind = KINDS.index(type(trial))
    return [trial.number, list(trial.profile), [f.seed, f.start, f.stop, f.length, f.data], kind]


def _read_trial(row: Sequence[Any]) -> Trial:
    number, profile, fidelity, kind = row
    return _trial(number, tuple(profile), Fidelity(*fidelity), KINDS[kind])
