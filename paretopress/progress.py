"""What the terminal shows of a job's progress: bars with rates and time left, or a few lines for logs."""

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
    """A listener for a job's events: bars with time left on a terminal, a few lines per stage elsewhere."""
    if console.console.is_terminal:
        with _bars() as listener:
            yield listener
    else:
        yield Lines()


class _Rate(ProgressColumn):
    """How fast a task goes, in its own unit."""

    def render(self, task: Task) -> Text:
        """Units per second, or nothing while that is unknown."""
        return Text(_rate(task.fields["rate"], _UNITS.get(task.description, "")))


class _Left(ProgressColumn):
    """How long a task may still take."""

    def render(self, task: Task) -> Text:
        """Minutes and seconds from the rate at the last event, or nothing while that is unknown."""
        rate, told = task.fields["rate"], task.fields["told"]
        if task.finished or task.total is None or not rate:
            return Text("")
        seconds = round(max((task.total - task.completed) / rate - (time.monotonic() - told), 0))
        return Text(f"{seconds // 60}:{seconds % 60:02d}")


class _Rates:
    """Progress per second of each stage, counted from its first event: what came before is no part of it."""

    def __init__(self) -> None:
        self.began: dict[str, tuple[float, float]] = {}

    def of(self, event: Event) -> float:
        """The rate at this event; 0 while it is unknown."""
        now = time.monotonic()
        first, began = self.began.setdefault(event.stage, (event.done, now))
        return (event.done - first) / (now - began) if now > began else 0.0


@contextmanager
def _bars() -> Iterator[Listener]:
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
    return f"{rate:,.{0 if rate >= 10 else 1}f} {unit}/s" if rate and unit else ""


class Lines:
    """Plain lines for logs: when a stage begins, every ten seconds, and when it ends."""

    def __init__(self) -> None:
        self._stage = ""
        self._last = 0.0
        self._ended = False
        self._rates = _Rates()

    def __call__(self, event: Event) -> None:
        """Print the event, or not."""
        now, rate = time.monotonic(), self._rates.of(event)
        ends = event.total is not None and event.done >= event.total
        soon = now - self._last < _SILENCE and not ends and event.stage != "workers"
        if event.stage == self._stage and (self._ended or soon):
            return
        self._stage, self._last, self._ended = event.stage, now, ends
        parts = [*_amounts(event, rate), *([event.text] if event.text else [])]
        print(f"{event.stage}: {', '.join(parts)}" if parts else event.stage, flush=True)


def _amounts(event: Event, rate: float) -> list[str]:
    """How much is done, how fast it goes and how long it may take, as far as that is known."""
    if event.stage not in _UNITS:
        return []
    total = "" if event.total is None else f" of {event.total:,.0f}"
    parts = [f"{event.done:,.0f}{total} {_UNITS[event.stage]}"]
    if rate:
        parts.append(_rate(rate, _UNITS[event.stage]))
        if event.total is not None and event.done < event.total:
            parts.append(f"at most {duration((event.total - event.done) / rate)} left")
    return parts
