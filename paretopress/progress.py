"""Display of a job's progress: bars with rates and remaining time on a terminal, a few lines in logs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from . import console
from .search.run.event import Event, Listener, duration

_UNITS = {"build levels": "blocks"} | dict.fromkeys(("search", "score kl", "check the allocations"), "tokens")
_SILENCE = 10.0


@contextmanager
def progress() -> Iterator[Listener]:
    """Yield a listener that displays a job's events, as bars on a terminal and as a few lines per stage elsewhere."""
    if console.console.is_terminal:
        with _bars() as listener:
            yield listener
    else:
        yield Lines()


class _Rate(ProgressColumn):
    """Column with the rate of a task, in the unit of its stage per second."""

    def render(self, task: Task) -> Text:
        """Return the rate as text; empty while it is unknown."""
        return Text(_rate(task.fields["rate"], _UNITS.get(task.description, "")))


class _Left(ProgressColumn):
    """Column with the remaining time of a task."""

    def render(self, task: Task) -> Text:
        """Return the remaining minutes and seconds at the rate of the last event; empty while the rate is unknown."""
        rate, told = task.fields["rate"], task.fields["told"]
        if task.finished or task.total is None or not rate:
            return Text("")
        seconds = round(max((task.total - task.completed) / rate - (time.monotonic() - told), 0))
        return Text(f"{seconds // 60}:{seconds % 60:02d}")


class _Rates:
    """Progress per second of each stage.

    Progress and time are counted from the first event of the stage, because what an earlier process did took no time
    in this one.
    """

    def __init__(self) -> None:
        self.began: dict[str, tuple[float, float]] = {}

    def of(self, event: Event) -> float:
        """Return the rate of the event's stage, in its unit per second; 0 while it is unknown."""
        now = time.monotonic()
        first, began = self.began.setdefault(event.stage, (event.done, now))
        return (event.done - first) / (now - began) if now > began else 0.0


@contextmanager
def _bars() -> Iterator[Listener]:
    """Yield a listener that displays one bar per stage; the bars of earlier stages are shown as complete."""
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=8),
        TextColumn("{task.percentage:>3.0f}%"),
        _Rate(table_column=Column(justify="right", no_wrap=True)),
        _Left(table_column=Column(justify="right", no_wrap=True)),
        TextColumn("{task.fields[text]}", table_column=rest, markup=False),
    )
    with Progress(*columns, console=console.console, expand=True) as bars:
        tasks: dict[str, TaskID] = {}
        rates = _Rates()

        def listen(event: Event) -> None:
            if event.stage not in tasks:
                for task in bars.tasks:
                    bars.update(task.id, total=max(task.completed, 1), completed=max(task.completed, 1))
                tasks[event.stage] = bars.add_task(event.stage, rate=0.0, told=0.0, text="")
            bars.update(
                tasks[event.stage],
                completed=event.done,
                total=event.total,
                rate=rates.of(event),
                told=time.monotonic(),
                text=event.text,
            )

        yield listen


def _rate(rate: float, unit: str) -> str:
    """Return a rate with its unit as text; empty if the rate is 0 or the unit is not known."""
    return f"{rate:,.{0 if rate >= 10 else 1}f} {unit}/s" if rate and unit else ""


class Lines:
    """Listener that prints plain lines for logs: when a stage begins, every ten seconds, and when it ends.

    Events of the stage `workers` are printed without a delay.
    """

    def __init__(self) -> None:
        self._stage = ""
        self._last = 0.0
        self._ended = False
        self._rates = _Rates()

    def __call__(self, event: Event) -> None:
        """Print the event unless it follows the last printed one too soon or its stage has ended."""
        now, rate = time.monotonic(), self._rates.of(event)
        ends = event.total is not None and event.done >= event.total
        soon = now - self._last < _SILENCE and not ends and event.stage != "workers"
        if event.stage == self._stage and (self._ended or soon):
            return
        self._stage, self._last, self._ended = event.stage, now, ends
        parts = [*_amounts(event, rate), *([event.text] if event.text else [])]
        print(f"{event.stage}: {', '.join(parts)}" if parts else event.stage, flush=True)


def _amounts(event: Event, rate: float) -> list[str]:
    """Return texts with the amount done, the rate and the remaining time of a stage, as far as they are known."""
    if event.stage not in _UNITS:
        return []
    total = "" if event.total is None else f" of {event.total:,.0f}"
    parts = [f"{event.done:,.0f}{total} {_UNITS[event.stage]}"]
    if rate:
        parts.append(_rate(rate, _UNITS[event.stage]))
        if event.total is not None and event.done < event.total:
            parts.append(f"at most {duration(round((event.total - event.done) / rate))} left")
    return parts
