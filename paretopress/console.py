"""What the terminal shows: progress with rates and time left, fronts and scores as tables, errors in one line."""

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column, Table
from rich.text import Text

from .search.event import Event, Listener

if TYPE_CHECKING:
    from .search.sensitivities import Allocation, Comparison

console = Console()
errors = Console(stderr=True)

_UNITS = {"build levels": "blocks"} | dict.fromkeys(("search", "score kl", "check the allocations"), "tokens")
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
    with Progress(*columns, console=console, expand=True) as bars:
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
        if event.stage == self._stage and (self._ended or (now - self._last < _SILENCE and not ends)):
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
            parts.append(f"at most {_duration((event.total - event.done) / rate)} left")
    return parts


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
        "p on validation text: against uniform, a refit's against its front",
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
        rows.sort(key=lambda row: row["method"] != "uniform")
        for i, row in enumerate(rows):
            table.add_row(point["budget"] if i == 0 else "", row["method"], *_figures(front, row))
        refit = point.get("refit")
        table.add_row(
            "" if rows else point["budget"],
            f"front: {point['method'].replace('+', ' + ')}",
            *_figures(front, point),
            style="bold",
            end_section=not refit,
        )
        if refit:
            kept = "refit" if refit["kept"] else "refit, not kept"
            table.add_row("", kept, *_figures(front, point | refit), end_section=True)
    return table


def _figures(front: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    p_value = row.get("p_value")
    if row["heldout_kl"] is None:
        measured = ["not finite", "", ""]
    else:
        low, high = row["heldout_interval"]
        measured = [f"{row['heldout_kl']:.5f}", f"{(high - low) / 2:.2g}", f"{row['heldout_perplexity']:.3f}"]
    figures = [_size(row["bytes"]), *measured, "" if p_value is None else f"{p_value:.2g}"]
    return figures if front["cost_kind"] == "bytes" else [f"{row['cost']:.6g}", *figures]


def score_table(found: "Comparison") -> Table:
    """What each score cost, and how far it ranks levels and units as measured changes of fitness do."""
    table = _plain_table("Spearman: rank correlation with kl, over all levels of all units and over units")
    table.add_column("score")
    for heading in ("tokens", "seconds", "Spearman, levels", "units"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in found.scored:
        ranks = ["" if rank is None else f"{rank:.3f}" for rank in (row.levels, row.units)]
        reused = "measured before" if row.reused else ""
        table.add_row(row.score, f"{row.tokens:,}", f"{row.seconds:.1f}", *ranks, reused)
    return table


def allocation_table(found: "Comparison") -> Table:
    """The profile that the exact allocation makes of each score, for every budget."""
    rows = [*found.allocations, *([found.within] if found.within else [])]
    table = _plain_table(
        "predicted: fitness if the changes in kl added up; measured: on calibration text, the best in bold"
        if any(row.fitness is not None for row in rows)
        else "predicted: fitness if the changes in kl added up; --check measures it"
    )
    for heading in ("budget", "by"):
        table.add_column(heading, no_wrap=True, vertical="top")
    for heading in (found.cost_unit, "predicted", "measured"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("units at each level")
    for i, row in enumerate(rows):
        same = [other for other in rows if other.budget == row.budget]
        known = [other.fitness for other in same if other.fitness is not None]
        table.add_row(
            row.budget if row is same[0] else "",
            row.score,
            f"{found.in_units(row.cost):.6g}",
            *("" if value is None else f"{value:.5f}" for value in (row.predicted, row.fitness)),
            _levels(found, row),
            style="bold" if row.fitness is not None and row.fitness == min(known) else None,
            end_section=i + 1 == len(rows) or rows[i + 1].budget != row.budget,
        )
    return table


def _levels(found: "Comparison", row: "Allocation") -> str:
    """How many units have each level, in the order in which the space names them."""
    space = found.assembly.space
    order = dict.fromkeys(label for unit in space.units for label in unit.index)
    counts = Counter(space.describe(row.profile).values())
    return ", ".join(f"{counts[label]}\u00a0{label}" for label in order if label in counts)


def _plain_table(caption: str) -> Table:
    return Table(
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )


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
