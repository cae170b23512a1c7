"""The worker: a process on some node of a Ray cluster that opens the model and evaluates trials."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray

from ...evaluators.trial import Evaluation, Evaluator, Fidelity, Trial
from .ray_cluster import Share, own_share
from .splitting import Part

Say = Callable[[str], None]

Open = Callable[[Share, Any], Evaluator]
"""A function that opens model and levels, given the worker's share of its node and the object from errands or None."""

Answer = tuple[int, Evaluation]
"""The place of a trial in its part, and its evaluation with `_UNSENT` instead of the trial, to send less data."""

_UNSENT = Trial(0, (), Fidelity(0, 0, 0, 0))


class Worker:
    """A worker process, which runs errands before a search and evaluates trials once it has opened the model.

    An errand is a function that runs here with an object that the worker keeps from one errand to the next.
    """

    def __init__(self) -> None:
        self._said: list[str] = []
        self._held: Any = None

    def start(self) -> tuple[str, str]:
        """Return name and id of the node that the worker runs on."""
        return socket.gethostname(), ray.get_runtime_context().get_node_id()

    def go(self, make: Callable[[Share], Any], errand: Callable[[Any, Say], Any]) -> Any:
        """Run an errand and return its result.

        Args:
            make: function that makes the object for errands, called at the first errand only.
            errand: function of that object and of a function for progress messages.

        Raises:
            ValueError: the object cannot be made, or the errand found bad input; the message names the node.
        """
        with _named_node():
            self._held = self._held or make(own_share())
            return errand(self._held, self._said.append)

    def told(self, after: int) -> list[str]:
        """Return the progress messages of all errands from message `after` on, also while an errand runs."""
        return self._said[after:]

    def open(self, evaluator: Open) -> None:
        """Open model and levels, so that trials can be evaluated.

        Raises:
            ValueError: model or levels cannot be opened on this node; the message names the node.
        """
        with _named_node():
            self._evaluator = evaluator(own_share(), self._held)

    def evaluate(self, trials: Part) -> list[Answer]:
        """Evaluate the trials of a part and return their answers, each with the place of its trial in the part."""
        places = {trial.number: place for place, trial in enumerate(trials)}
        return [(places[e.trial.number], replace(e, trial=_UNSENT)) for e in self._evaluator.evaluate(trials)]


def evaluations(trials: Part, answers: list[Answer]) -> list[Evaluation]:
    """Turn a worker's answers into evaluations of the part's trials."""
    return [replace(evaluation, trial=trials[place]) for place, evaluation in answers]


@contextmanager
def _named_node() -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"worker on {socket.gethostname()}: {error}") from None
