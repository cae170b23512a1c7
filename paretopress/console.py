"""What the terminal shows: progress with time left, the front as a table, errors in one line."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from .search.event import Event, Listener

console = Console()
errors = Console(stderr=True)


@contextmanager
def progress() -> Iterator[Listener]:
    """A listener for a job's events: bars with time left on a terminal, one line per stage elsewhere."""
    if console.is_terminal:
        with _bars() as listener:
            yield listener
    else:
        yield _Lines()


@contextmanager
def _bars() -> Iterator[Listener]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def listen(event: Event) -> None:
            if event.stage not in tasks:
                tasks[event.stage] = bars.add_task(event.stage, total=event.total, text="")
            bars.update(tasks[event.stage], completed=event.done, total=event.total, text=event.text)

        yield listen


class _Lines:
    """Plain lines for logs: when a stage begins, every ten seconds, and when it ends."""

    def __init__(self) -> None:
        self.stage = ""
        self.last = 0.0

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        finished = event.total is not None and event.done >= event.total
        if event.stage == self.stage and now - self.last < 10 and not finished:
            return
        self.stage, self.last = event.stage, now
        amount = f" {event.done:,.0f}/{event.total:,.0f}" if event.total is not None else ""
        print(f"{event.stage}{amount} {event.text}".rstrip(), flush=True)


def front_table(front: Mapping[str, Any]) -> Table:
    """Baselines and front of a run, in order of budget, held-out figures of each."""
    table = Table(title=f"{front['name']}: {front['model']}", title_justify="left", header_style="bold")
    table.add_column("budget")
    table.add_column("method")
    for heading in (front["cost_unit"], "size", "held-out KL", "95 %", "perplexity", "p vs uniform"):
        table.add_column(heading, justify="right")
    dense = front["dense"]
    size = f"{dense['bytes']:,} B"
    table.add_row("", "dense", "", size, "0", "", f"{dense['heldout_perplexity']:.3f}", "", end_section=True)
    for point in front["points"]:
        baselines = [row for row in front["baselines"] if row["budget"] == point["budget"]]
        for row in baselines:
            _add_row(table, row)
        _add_row(table, point, style="bold", end_section=True)
    return table


def _add_row(table: Table, row: Mapping[str, Any], *, style: str = "", end_section: bool = False) -> None:
    low, high = row["heldout_interval"]
    p_value = row.get("p_value")
    table.add_row(
        row["budget"],
        row["method"],
        f"{row['cost']:.6g}",
        f"{row['bytes']:,} B",
        f"{row['heldout_kl']:.5f}",
        f"{low:.5f} to {high:.5f}",
        f"{row['heldout_perplexity']:.3f}",
        "" if p_value is None else f"{p_value:.4f}",
        style=style,
        end_section=end_section,
    )


def fail(error: BaseException) -> int:
    """Print an error in one line to the error stream; the exit code for bad input."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    errors.print(f"paretopress: {text}", style="red", markup=False, highlight=False, soft_wrap=True)
    return 2


def say(text: str) -> None:
    """Print one line of plain text."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
