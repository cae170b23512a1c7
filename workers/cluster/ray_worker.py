"""What lives in a process of its own, on whichever node Ray has room."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from ...evaluators.trial import Evaluation, Evaluator, SlopeSums
from .ray_cluster import Share, own_share
from .splitting import Part

Say = Callable[[str], None]

Open = Callable[[Share, Any], Evaluator]
"""Opens model and levels, given what the worker holds from errands, or None."""

Answer = tuple[int, tuple[float, ...], tuple[float, ...], float, str | None, SlopeSums | None]
"""An evaluation with its trial's place among those asked, which need not travel back."""


class Worker:
    """Goes on errands while a run is opened, and evaluates once it has opened model and levels."""

    def __init__(self) -> None:
        self._said: list[str] = []
        self._held: Any = None

    def start(self) -> tuple[str, str]:
        """Name and id of the node."""
        return socket.gethostname(), ray.get_runtime_context().get_node_id()

    def go(self, make: Callable[[Share], Any], errand: Callable[[Any, Say], Any]) -> Any:
        """Run an errand with what `make` gives, which is kept for the next.

        Raises:
            ValueError: it cannot be made, or the errand found bad input; the message begins with the node's name.
        """
        with _named_node():
            self._held = self._held or make(own_share())
            return errand(self._held, self._said.append)

    def told(self, after: int) -> list[str]:
        """What errands told, without the first `after` of it; may be asked while one runs."""
        return self._said[after:]

    def open(self, evaluator: Open) -> None:
        """Open model and levels.

        Raises:
            ValueError: they cannot be opened here; the message begins with the node's name.
        """
        with _named_node():
            self._evaluator = evaluator(own_share(), self._held)

    def evaluate(self, trials: Part) -> list[Answer]:
        """Evaluate a part and return its answers, each with the place of its trial in the part."""
        places = {trial.number: place for place, trial in enumerate(trials)}
        return [
            (places[e.trial.number], e.values, e.cross_entropy, e.seconds, e.error, e.slopes)
            for e in self._evaluator.evaluate(trials)
        ]


def evaluations(trials: Part, answers: list[Answer]) -> list[Evaluation]:
    """A worker's answers with their trials again."""
    return [Evaluation(trials[answer[0]], *answer[1:]) for answer in answers]


@contextmanager
def _named_node() -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"worker on {socket.gethostname()}: {error}") from None
