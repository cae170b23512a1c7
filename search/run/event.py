"""What a job tells of its work."""

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


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as a forecast needs them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
