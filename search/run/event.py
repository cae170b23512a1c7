"""Events that a job reports while it works."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One report of progress.

    Attributes:
        stage: name of the present part of the job, in a few words.
        done: amount of the stage that is done, for example tokens or blocks.
        total: amount of the whole stage in the same unit, or None if it is not known.
        text: latest result for the user, for example the best fitness so far.
    """

    stage: str
    done: float
    total: float | None = None
    text: str = ""


Listener = Callable[[Event], None]


def duration(seconds: float) -> str:
    """Return a duration as text in seconds, minutes or hours, with the precision that a forecast needs."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
