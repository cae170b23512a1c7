"""Searchers that run one after another: one for each budget, or one method that refines the result of another."""

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
"""Function that builds a searcher from the profiles measured so far at the archive's fidelity, the best first."""


def starts_within(space: Space, limits: Limits, scored: Sequence[Scored], count: int) -> list[Profile]:
    """Return the first `count` profiles of `scored` that are within the limits and build different models."""
    fitting: dict[Profile, Profile] = {}
    for profile, _ in scored:
        if space.fits(profile, limits):
            fitting.setdefault(space.canonical(profile), profile)
    return list(fitting.values())[:count]


class SeriesSearcher:
    """Runs searchers one after another and numbers their trials as those of one search.

    Each searcher is built with the results of all searchers before it. A searcher in this series is called a leg.

    Args:
        legs: builders of the searchers; each is called when its searcher's turn comes.
        archive: fidelity of the results that are passed on to later searchers.
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
        """Index of the searcher whose turn it is."""
        return self._leg

    def ask(self) -> list[Trial]:
        """Return the next trials, or an empty list when the last searcher is finished."""
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
        """Pass the evaluations on to the searcher that asked, and keep those at the archive's fidelity."""
        for e in evaluations:
            if e.trial.fidelity == self._archive and e.error is None and e.fitness < math.inf:
                self._scored.append((e.trial.profile, e.fitness))
        self._searcher.tell([replace(e, trial=_renumbered(e.trial, -self._offset)) for e in evaluations])

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state of the series and of its present searcher as JSON values."""
        return {
            "leg": self._leg,
            "offset": self._offset,
            "asked": self._asked,
            "scored": _write(self._scored),
            "given": _write(self._given),
            "searcher": self._searcher.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state_dict` returned, so that the search continues exactly from there."""
        self._leg, self._offset, self._asked = state["leg"], state["offset"], state["asked"]
        self._scored, self._given = _read(state["scored"]), _read(state["given"])
        self._searcher = self._legs[self._leg](self._given)
        self._searcher.load_state_dict(state["searcher"])


def _renumbered(trial: Trial, offset: int) -> Trial:
    return replace(trial, number=trial.number + offset)


def _write(scored: Sequence[Scored]) -> list[Any]:
    return [[list(profile), write_fitness(fitness)] for profile, fitness in scored]


def _read(rows: Sequence[Any]) -> list[Scored]:
    return [(tuple(profile), read_fitness(fitness)) for profile, fitness in rows]
