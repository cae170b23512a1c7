"""Where evaluations run."""

from collections.abc import Iterable, Iterator
from typing import Protocol

from ..evaluators.trial import Evaluation, Evaluator, Trial


class WorkerPool(Protocol):
    """Runs trials somewhere and yields answers as they come."""

    def run(self, trials: Iterable[Trial]) -> Iterator[Evaluation]:
        """Yield answers as they come, in any order; each of all or part of one trial's sequences, together all."""

    def close(self) -> None:
        """Release what the workers hold; the pool cannot be used afterwards."""


class LocalPool:
    """Runs trials in this process."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    def run(self, trials: Iterable[Trial]) -> Iterator[Evaluation]:
        """Yield the evaluator's answers."""
        return self.evaluator.evaluate(trials)

    def close(self) -> None:
        """Do nothing: this pool holds nothing to release."""
