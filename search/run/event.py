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
    """Format a number of seconds in hours, minutes and seconds, with at most two units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"
