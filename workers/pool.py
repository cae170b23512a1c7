"""The interface of worker pools, and the pool that evaluates in this process."""

from collections.abc import Iterable, Iterator
from typing import Protocol

from ..evaluators.trial import Evaluation, Evaluator, Trial


class WorkerPool(Protocol):
    """Interface of whatever runs trials, in this process or elsewhere."""

    def run(self, trials: Iterable[Trial]) -> Iterator[Evaluation]:
        """Yield evaluations as soon as they are finished, in any order.

        An evaluation may answer only a part of the sequences of its trial; together they answer every trial.
        """

    def close(self) -> None:
        """Release what the workers hold; the pool cannot be used afterwards."""


class LocalPool:
    """A pool that runs trials in this process, with one call of the evaluator for all trials of a call of `run`."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    def run(self, trials: Iterable[Trial]) -> Iterator[Evaluation]:
        """Yield the evaluator's answers."""
        return self.evaluator.evaluate(trials)

    def close(self) -> None:
        """Do nothing: this pool holds nothing to release."""
