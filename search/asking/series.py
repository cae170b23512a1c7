"""Searchers one after another: one per budget, or one method refining another's result."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...evaluators.trial import Evaluation, Fidelity, Trial
from ...spaces.space import Limits, Profile, Space
from .searcher import Searcher
from .turns import read_fitness, write_fitness

Scored = tuple[Profile, float]
Leg = Callable[[Sequence[Scored]], Searcher]
"""Builds the next searcher from what was measured at the archive's fidelity so far, best first."""


def starts_within(space: Space, limits: Limits, scored: Sequence[Scored], count: int) -> list[Profile]:
    """The first `count` different models of `scored` that are within the limits."""
    fitting: dict[Profile, Profile] = {}
    for profile, _ in scored:
        if space.fits(profile, limits):
            fitting.setdefault(space.canonical(profile), profile)
    return list(fitting.values())[:count]


class SeriesSearcher:
    """Runs searchers in turn and renumbers their trials; each leg sees the results of those before it.

    Args:
        legs: builders of the searchers, called when their turn comes.
        archive: the fidelity at which results are passed on.
    """

    def __init__(self, legs: Sequence[Leg], archive: Fidelity) -> None:
        if not legs:
            raise ValueError("a series needs at least one searcher")
        self._legs = list(legs)
        self._archive = archive
        self._scored: list[Scored] = []
        self._given: list[Scored] = []
        self._leg = 0
        self._offset = 0
        self._asked = 0
        self._searcher = self._legs[0]([])

    @property
    def final(self) -> bool:
        """Whether the last searcher's turn has come."""
        return self._leg + 1 == len(self._legs)

    @property
    def leg(self) -> int:
        """Number of the searcher whose turn it is."""
        return self._leg

    def ask(self) -> list[Trial]:
        """The next trials; empty when the last searcher has finished."""
        trials = self._searcher.ask()
        while not trials and self._leg + 1 < len(self._legs):
            self._leg, self._offset = self._leg + 1, self._asked
            self._given = sorted(self._scored, key=lambda scored: scored[1])
            self._searcher = self._legs[self._leg](self._given)
            trials = self._searcher.ask()
        numbered = [_renumbered(trial, self._offset) for trial in trials]
        self._asked = max([self._asked, *(trial.number + 1 for trial in numbered)])
        return numbered

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Pass the answers on to the searcher that asked."""
        for e in evaluations:
            if e.trial.fidelity == self._archive and e.error is None and e.fitness < math.inf:
                self._scored.append((e.trial.profile, e.fitness))
        self._searcher.tell([replace(e, trial=_renumbered(e.trial, -self._offset)) for e in evaluations])

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what comes next, as JSON values."""
        return {
            "leg": self._leg,
            "offset": self._offset,
            "asked": self._asked,
            "scored": _write(self._scored),
            "given": _write(self._given),
            "searcher": self._searcher.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self._leg, self._offset, self._asked = state["leg"], state["offset"], state["asked"]
        self._scored, self._given = _read(state["scored"]), _read(state["given"])
        self._searcher = self._legs[self._leg](self._given)
        self._searcher.load_state_dict(state["searcher"])


def _renumbered(trial: Trial, offset: int) -> Trial:
    return Trial(trial.number + offset, trial.profile, trial.fidelity, trial.slopes)


def _write(scored: Sequence[Scored]) -> list[Any]:
    return [[list(profile), write_fitness(fitness)] for profile, fitness in scored]


def _read(rows: Sequence[Any]) -> list[Scored]:
    return [(tuple(profile), read_fitness(fitness)) for profile, fitness in rows]
