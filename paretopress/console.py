"""What the terminal shows: progress with rates and time left, the front as a table, errors in one line."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from .search.event import Event, Listener

console = Console()
errors = Console(stderr=True)

_UNITS = {"build levels": "blocks", "search": "tokens"}
_SILENCE = 10.0
_SIZES = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB"))


@contextmanager
def progress() -> Iterator[Listener]:
    """A listener for a job's events: bars with time left on a terminal, a few lines per stage elsewhere."""
    if console.is_terminal:
        with _bars() as listener:
            yield listener
    else:
        yield Lines()


class _Rate(ProgressColumn):
    """How fast a task goes, in its own unit."""

    def render(self, task: Task) -> Text:
        """Units per second, or nothing while that is unknown."""
        unit = _UNITS.get(task.description)
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.{0 if speed >= 10 else 1}f} {unit}/s" if unit and speed else "")


@contextmanager
def _bars() -> Iterator[Listener]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        TextColumn("{task.percentage:>3.0f}%"),
        _Rate(table_column=Column(justify="right", no_wrap=True)),
        TimeRemainingColumn(compact=True),
        TextColumn(
            "{task.fields[text]}",
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            markup=False,
        ),
    )
    with Progress(*columns, console=console, expand=True) as bars:
        tasks: dict[str, TaskID] = {}

        def listen(event: Event) -> None:
            if event.stage not in tasks:
                for task in bars.tasks:
                    total = max(task.completed, 1)
                    bars.update(task.id, total=total, completed=total)
                # What an earlier session did is no part of this one's speed.
                tasks[event.stage] = bars.add_task(
                    event.stage, total=event.total, completed=int(event.done), text=event.text
                )
            task_id = tasks[event.stage]
            bars.update(task_id, completed=event.done, total=event.total, text=event.text)

        yield listen


class Lines:
    """Plain lines for logs: when a stage begins, every ten seconds, and when it ends."""

    def __init__(self) -> None:
        self.stage = ""
        self.last = self.began = 0.0
        self.first = 0.0
        self.ended = False

    def __call__(self, event: Event) -> None:
        """Print the event, or not."""
        now = time.monotonic()
        ends = event.total is not None and event.done >= event.total
        if event.stage != self.stage:
            self.stage, self.began, self.first, self.ended = event.stage, now, event.done, False
        elif self.ended or (now - self.last < _SILENCE and not ends):
            return
        self.last, self.ended = now, ends
        print(self._line(event, now), flush=True)

    def _line(self, event: Event, now: float) -> str:
        parts = []
        if unit := _UNITS.get(event.stage):
            total = "" if event.total is None else f" of {event.total:,.0f}"
            parts.append(f"{event.done:,.0f}{total} {unit}")
            done, seconds = event.done - self.first, now - self.began
            if done > 0 and seconds > 0:
                rate = done / seconds
                parts.append(f"{rate:,.{0 if rate >= 10 else 1}f} {unit}/s")
                if event.total is not None and event.done < event.total:
                    parts.append(f"at most {_duration((event.total - event.done) / rate)} left")
        if event.text:
            parts.append(event.text)
        return f"{event.stage}: {', '.join(parts)}" if parts else event.stage


def front_table(front: Mapping[str, Any]) -> Table:
    """Baselines and front of a run, in order of budget, with the held-out figures of each.

    Fits 80 columns; figures are never cut.
    """
    dense = front["dense"]
    table = Table(
        title=f"{front['name']}: {front['model']} ({_size(dense['bytes'])}, perplexity {dense['heldout_perplexity']:.3f})",
        title_justify="left",
        title_style="bold",
        caption="KL in nats per token and perplexity on held-out text, ± half the 95 % interval of KL; "
        "p against uniform on validation text",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )
    table.add_column("budget", vertical="top")
    table.add_column("method", min_width=10)
    if front["cost_kind"] != "bytes":
        table.add_column(front["cost_unit"].replace("/", "/\n"), justify="right", min_width=8)
    for heading in ("size", "KL", "±", "perplexity", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in front["points"]:
        rows = [row for row in front["baselines"] if row["budget"] == point["budget"]]
        for i, row in enumerate(rows):
            table.add_row(point["budget"] if i == 0 else "", row["method"], *_figures(front, row))
        table.add_row(
            "" if rows else point["budget"],
            f"front: {point['method'].replace('+', ' + ')}",
            *_figures(front, point),
            style="bold",
            end_section=True,
        )
    return table


def _figures(front: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    low, high = row["heldout_interval"]
    p_value = row.get("p_value")
    figures = [
        _size(row["bytes"]),
        f"{row['heldout_kl']:.5f}",
        f"{(high - low) / 2:.2g}",
        f"{row['heldout_perplexity']:.3f}",
        "" if p_value is None else f"{p_value:.2g}",
    ]
    return figures if front["cost_kind"] == "bytes" else [f"{row['cost']:.6g}", *figures]


def _size(count: float) -> str:
    """Bytes to four digits, with a unit of powers of 1000."""
    return next((f"{count / f:.4g} {unit}" for f, unit in _SIZES if count >= f), f"{count:.0f} B")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def fail(error: BaseException | str) -> int:
    """Print an error in one line to the error stream; the exit code for bad input."""
    errors.print(f"paretopress: {_text(error)}", style="red", markup=False, highlight=False, soft_wrap=True)
    return 2


def _text(error: BaseException | str) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    return " ".join(text.split())


def say(text: str) -> None:
    """Print one line of plain text."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Print one line beside the results, to the error stream."""
    errors.print(f"paretopress: {text}", markup=False, highlight=False, soft_wrap=True)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def settle_output() -> None:
    """Let the project's own warnings through and keep those of libraries out; for the program, not the package."""
    log = logging.getLogger("paretopress")
    if not any(isinstance(handler, _Notes) for handler in log.handlers):
        log.addHandler(_Notes(logging.WARNING))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not console.is_terminal:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
