"""Tables of fronts, scores, allocations and tasks that fit 80 columns without truncated figures."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from .exporters.figures import size

if TYPE_CHECKING:
    from .evaluators.tasks.harness import Score
    from .exporters.evaluate import Compared
    from .search.folder.front import Front, Point, Refit
    from .search.sensitivities.sensitivities import Allocation, Comparison


def front_table(front: "Front") -> Table:
    """Build the table of a run's front and baselines, in order of budget, with their held-out figures."""
    dense = front.dense
    table = _table(
        "→ profiles that the search found, in order the points 1, 2, ... of `export --point`; KL (nats per token) and perplexity on held-out text; ± half the 95 % interval of KL; "
        "p: p-value on validation text of being better than uniform, for a refit of being better than the row above",
        f"{front.name}: {front.model} ({size(dense['bytes'])}, perplexity {dense['heldout_perplexity']:.3f})",
    )
    table.add_column("budget", vertical="top")
    table.add_column("method", min_width=10)
    if front.cost_kind != "bytes":
        table.add_column(front.cost_unit.replace("/", "/\n"), justify="right", min_width=6)
    for heading in ("size", "KL", "±", "perplexity", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in front.points:
        rows = [row for row in front.baselines if row.budget == point.budget]
        rows.sort(key=lambda row: row.method != "uniform")
        for i, row in enumerate(rows):
            table.add_row(point.budget if i == 0 else "", row.method, *_figures(front, row, row))
        refit = point.refit
        table.add_row(
            "" if rows else point.budget,
            f"→ {point.method.replace('+', ' + ')}",
            *_figures(front, point, point),
            style="bold",
            end_section=not refit,
        )
        if refit:
            kept = "refit" if refit.kept else "refit, not kept"
            table.add_row("", kept, *_figures(front, point, refit), end_section=True)
    return table


def _figures(front: "Front", point: "Point", measured: "Point | Refit") -> list[str]:
    """Return the cells of a row after budget and method: cost, size, held-out figures and p-value.

    Args:
        front: front to which the point belongs.
        point: point whose cost and size are shown.
        measured: the same point or its refit, whose held-out figures are shown.
    """
    interval = measured.heldout_interval
    if measured.heldout_kl is None or interval is None:
        heldout = ["not finite", "", ""]
    else:
        half = (interval[1] - interval[0]) / 2
        heldout = [f"{measured.heldout_kl:.5f}", f"{half:.2g}", f"{measured.heldout_perplexity:.3f}"]
    p_value = "" if measured.p_value is None else f"{measured.p_value:.2g}"
    figures = [size(point.bytes), *heldout, p_value]
    return figures if front.cost_kind == "bytes" else [f"{point.cost:.6g}", *figures]


def score_table(found: "Comparison") -> Table:
    """Build the table of the scores: their cost and their rank correlation with measured changes of fitness."""
    table = _table(
        "Spearman: rank correlation with the measured score kl, over all levels of all units and over units"
    )
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
    """Build the table of the profiles that are allocated by each score, for every budget."""
    rows = [*found.allocations, *([found.within] if found.within else [])]
    gaps = any(row.gap is not None for row in rows)
    caption = (
        "predicted: fitness if the measured changes in kl add up; measured: fitness on calibration text, the best in bold"
        if any(row.fitness is not None for row in rows)
        else "predicted: fitness if the measured changes in kl add up; the option --check measures the fitness"
    )
    table = _table(caption + "; gap: upper bound on how much lower the sum of that score could be" * gaps)
    for heading in ("budget", "by"):
        table.add_column(heading, no_wrap=True, vertical="top")
    for heading in (found.cost_unit, "predicted", "measured", *(["gap"] if gaps else [])):
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
            *(["" if row.gap is None else f"{row.gap:.2g}"] if gaps else []),
            _levels(found, row),
            style="bold" if row.fitness is not None and row.fitness == min(known) else None,
            end_section=i + 1 == len(rows) or rows[i + 1].budget != row.budget,
        )
    return table


def _levels(found: "Comparison", row: "Allocation") -> str:
    """Return the number of units at each level as text, in the order in which the levels first occur in the space."""
    space = found.assembly.space
    order = dict.fromkeys(label for unit in space.units for label in unit.index)
    counts = Counter(space.describe(row.profile).values())
    return ", ".join(f"{counts[label]}\u00a0{label}" for label in order if label in counts)


def task_table(rows: "Sequence[Compared]") -> Table:
    """Build the table of the scores on tasks, with those of the dense model where they are known."""
    dense = any(row.dense for row in rows)
    table = _table("scores of lm-eval; ± one standard error; ↑ higher is better, ↓ lower is better")
    table.add_column("task", overflow="fold")
    table.add_column("metric", min_width=15)
    for heading in ("docs", "score", "±", *(("dense", "±") if dense else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        score = row.score
        better = {True: " ↑", False: " ↓", None: ""}[score.higher]
        cells = [*_score(score), *(_score(row.dense) if dense else ())]
        table.add_row(score.task, f"{score.metric}{better}", f"{score.samples:,}", *cells)
    return table


def _score(score: "Score | None") -> tuple[str, str]:
    """Return the cells with a score and its standard error; empty cells for None."""
    if score is None:
        return "", ""
    return _short(score.value), _short(score.error)


def _short(value: float | None) -> str:
    """Return a number with four decimal places, or with four significant digits from 1000 on; empty for None.

    The limit on large numbers leaves room for the other columns.
    """
    if value is None:
        return ""
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"


def _table(caption: str, title: str | None = None) -> Table:
    """Build an empty table in the style that all tables share."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )
