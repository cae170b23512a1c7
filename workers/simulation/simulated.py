"""A cluster in simulated time: real answers, no waiting, and a count of who waited for whom."""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np

from ...evaluators.slopes.passes import passes
from ...evaluators.trial import Evaluation, Evaluator, Trial
from ...spaces.space import Space
from .landscape import check_share


class SpaceEvaluator(Evaluator, Protocol):
    """An evaluator that says which space's profiles it measures."""

    space: Space


class SimulatedPool:
    """Gives an evaluator's answers in the order in which simulated workers would finish.

    The next trial goes to the worker that is free first. How long a trial takes, and whether it fails, follows
    from its number and sequences alone, so neither changes with the workers or when a study goes on after a stop.
    A population is evaluated as a whole before the first answer. Between two `run`s all workers wait.

    Args:
        evaluator: a landscape, a replay, or a real one.
        workers: number of workers.
        seconds: that one sequence takes; slopes take it once for each of their `passes`.
        spread: a trial's time varies by this share up or down, evenly.
        failures: share of the trials that come back with an error.
        seed: of times and failures.

    Attributes:
        elapsed: simulated seconds from the first trial's start to the last answer taken.
        busy: simulated seconds of all workers together for the answers taken.
    """

    def __init__(
        self,
        evaluator: SpaceEvaluator,
        workers: int,
        *,
        seconds: float = 1.0,
        spread: float = 0.0,
        failures: float = 0.0,
        seed: int = 0,
    ) -> None:
        if workers < 1:
            raise ValueError(f"{workers} workers do nothing; give at least 1")
        check_share("spread", spread)
        check_share("failures", failures)
        self.evaluator = evaluator
        self.workers = workers
        self.seconds = seconds
        self.spread = spread
        self.failures = failures
        self.seed = seed
        self.elapsed = 0.0
        self.busy = 0.0

    @property
    def idle(self) -> float:
        """Simulated seconds that workers waited, all together."""
        return self.workers * self.elapsed - self.busy

    @property
    def busy_share(self) -> float:
        """Share of the workers' time that was work; 0 before any."""
        return self.busy / (self.workers * self.elapsed) if self.elapsed else 0.0

    def run(self, trials: Iterable[Trial]) -> Iterator[Evaluation]:
        """Yield one evaluation per trial as the simulated workers finish."""
        asked = list(trials)
        fates = [self._fate(trial) for trial in asked]
        begun = self.elapsed
        finishes = self._finishes([seconds for seconds, _ in fates])
        answers = self._answers([t for t, (_, failed) in zip(asked, fates, strict=True) if not failed])
        for place in sorted(range(len(asked)), key=finishes.__getitem__):
            trial, seconds = asked[place], fates[place][0]
            answer = answers.get(trial, Evaluation(trial, (), (), error="the simulated worker failed"))
            self.elapsed = begun + finishes[place]
            self.busy += seconds
            yield replace(answer, seconds=seconds)

    def _answers(self, trials: list[Trial]) -> dict[Trial, Evaluation]:
        return {answer.trial: answer for answer in self.evaluator.evaluate(trials)}

    def _fate(self, trial: Trial) -> tuple[float, bool]:
        """Seconds, and whether it fails."""
        fidelity = trial.fidelity
        place = [self.seed, trial.number, fidelity.start, fidelity.stop]
        late, luck = np.random.default_rng(place).random(2)
        factor = 1 + self.spread * (2 * late - 1)
        times = passes(self.evaluator.space) if trial.slopes else 1
        return float(self.seconds * times * fidelity.sequences * factor), bool(luck < self.failures)

    def _finishes(self, seconds: list[float]) -> list[float]:
        """When each trial is done if the worker that is free first takes the next one."""
        free = [0.0] * min(self.workers, max(len(seconds), 1))
        return [_take(free, each) for each in seconds]

    def close(self) -> None:
        """Do nothing: a simulation holds nothing to release."""


def _take(free: list[float], seconds: float) -> float:
    done = free[0] + seconds
    heapq.heapreplace(free, done)
    return done
