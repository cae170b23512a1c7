"""A pool of simulated workers: an evaluator's answers, given in simulated time, without any waiting."""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np

from ...evaluators.trial import Evaluation, Evaluator, Trial
from ...spaces.space import Space
from .landscape import check_share


class SpaceEvaluator(Evaluator, Protocol):
    """Interface of an evaluator that also names the space of its profiles."""

    space: Space


class SimulatedPool:
    """Gives an evaluator's answers in the order in which simulated workers would finish.

    The next trial goes to the worker that is free first. The time of a trial and whether it fails depend only on the
    seed and on the trial's number and sequences, so they do not change with the number of workers or when a search is
    resumed. All trials of a call are evaluated before the first answer. Between two calls of `run` all workers wait.

    Args:
        evaluator: evaluator that gives the answers: a landscape, a replay or one with a model.
        workers: number of simulated workers.
        seconds: simulated seconds that one sequence takes; slopes take them once for each of their `passes`.
        spread: largest share by which the time of a trial is shorter or longer, drawn uniformly.
        failures: probability that a trial comes back with an error.
        seed: seed of times and failures.

    Attributes:
        elapsed: simulated seconds from the start of the first trial to the last answer that was taken.
        busy: simulated seconds that all workers together worked for the answers that were taken.

    Raises:
        ValueError: there is no worker, or `spread` or `failures` is outside 0 to 1.
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
            raise ValueError(f"{workers} workers cannot run trials; give at least 1")
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
        """Simulated seconds that all workers together waited."""
        return self.workers * self.elapsed - self.busy

    @property
    def busy_share(self) -> float:
        """Share of the workers' time that they worked, or 0 before the first answer."""
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
        """Return the simulated seconds of a trial and whether it fails."""
        fidelity = trial.fidelity
        place = [self.seed, trial.number, fidelity.start, fidelity.stop]
        late, luck = np.random.default_rng(place).random(2)
        factor = 1 + self.spread * (2 * late - 1)
        sequences = trial.work(self.evaluator.space) / fidelity.length
        return float(self.seconds * sequences * factor), bool(luck < self.failures)

    def _finishes(self, seconds: list[float]) -> list[float]:
        """Return the time at which each trial is done, counted from the start of the call."""
        free = [0.0] * min(self.workers, max(len(seconds), 1))
        return [_take(free, each) for each in seconds]

    def close(self) -> None:
        """Do nothing: a simulation holds nothing to release."""


def _take(free: list[float], seconds: float) -> float:
    done = free[0] + seconds
    heapq.heapreplace(free, done)
    return done
