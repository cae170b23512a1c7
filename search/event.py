"""What a job tells while it works."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One step of progress.

    Attributes:
        stage: what is going on, in a few words.
        done: how much of it is done.
        total: how much there is, or None.
        text: the latest fact, for example the best fitness so far.
    """

    stage: str
    done: float
    total: float | None = None
    text: str = ""


Listener = Callable[[Event], None]
