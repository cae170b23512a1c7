"""The tables of `methods`: one of all runs, and one of the front of each method over all budgets."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean
from typing import Any

Row = dict[str, Any]


def rows_of(
    front: Mapping[str, Any], method: str, seed: int, search: Sequence[Any], seconds: float
) -> list[Row]:
    """Return the rows of a run: one per budget for each baseline, then one per budget for the method.

    Args:
        front: content of the run's `front.json`.
        method: name of the method in the tables.
        seed: seed of the search.
        search: settings of the search.
        seconds: time of the whole run, in seconds.
    """
    rows = [_row(base, {}, base["method"], seed, baseline=True) for base in front["baselines"]]
    uniform = {row["budget"]: row["heldout_kl"] for row in rows if row["method"] == "uniform"}
    for point in front["points"]:
        row = _row(point, front, method, seed, baseline=False)
        together = len(front["points"])
        rows.append(row | {"search": search, "total_seconds": seconds, "together": together})
    return [row | {"gain": 1 - row["heldout_kl"] / uniform[row["budget"]]} for row in rows]


def _row(
    point: Mapping[str, Any], front: Mapping[str, Any], method: str, seed: int, *, baseline: bool
) -> Row:
    return {
        "method": method if not baseline or method == "uniform" else f"{method} (baseline)",
        "baseline": baseline,
        "seed": seed,
        "budget": point["budget"],
        "cost": point["cost"],
        "heldout_kl": point["heldout_kl"],
        "heldout_interval": point["heldout_interval"],
        "heldout_perplexity": point["heldout_perplexity"],
        "calibration_kl": point["fitness"],
        "tokens": front.get("tokens", 0) + front.get("teacher_tokens", 0),
        "teacher_tokens": front.get("teacher_tokens", 0),
        "validation_tokens": front.get("validation_tokens", 0),
        "together": 1,
        "winner": point["method"],
        "significant": point.get("significant"),
        "seconds": front.get("seconds", 0.0),
        "progress": [row for row in front.get("progress", []) if row["budget"] == point["budget"]],
        "profile": point["profile"],
    }


def each_baseline_once(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with the baselines first and only one row of each baseline per budget."""
    baselines = {(row["budget"], row["method"]): row for row in rows if row["baseline"]}
    return [*baselines.values(), *(row for row in rows if not row["baseline"])]


def table(rows: Sequence[Row], *, header: bool = True) -> str:
    """Format a markdown table of all rows."""
    lines = [
        "| budget | method | seed | held-out KL | 95 % interval | gain | perplexity | calibration KL "
        "| search tokens | validation tokens | winner | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        low, high = row["heldout_interval"]
        fitness = row["calibration_kl"]
        lines.append(
            f"| {row['budget']} | {row['method']} | {row['seed']} | {row['heldout_kl']:.4f} "
            f"| {low:.4f} to {high:.4f} | {row['gain']:.1%} "
            f"| {row['heldout_perplexity']:.3f} | {'' if fitness is None else f'{fitness:.4f}'} "
            f"| {row['tokens'] / 1e6:.2f} M | {row['validation_tokens'] / 1e6:.2f} M "
            f"| {row['winner']} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines if header else lines[2:])


def by_budget(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a markdown table of held-out divergences by method and budget, as means over seeds.

    `tokens` are those of a front over all budgets. With a single budget there are no lines.
    """
    budgets = list(dict.fromkeys(row["budget"] for row in rows))
    if len(budgets) == 1:
        return []
    methods = list(dict.fromkeys(row["method"] for row in rows))
    found = {
        (method, budget): [r for r in rows if r["method"] == method and r["budget"] == budget]
        for method in methods
        for budget in budgets
    }
    lines = [
        "| method | tokens | hypervolume | " + " | ".join(budgets) + " |",
        "| --- " * (len(budgets) + 3) + "|",
    ]
    reference = max((mean(r["heldout_kl"] for r in found["uniform", b]) for b in budgets), default=0.0)
    for method in methods:
        of = [found[method, budget] for budget in budgets]
        values = [mean(r["heldout_kl"] for r in each) if each else None for each in of]
        costs = [mean(r["cost"] for r in each) if each else 0.0 for each in of]
        tokens = sum(mean(r["tokens"] / r["together"] for r in each) for each in of if each)
        share = "" if None in values else f"{hypervolume(costs, values, reference):.4f}"
        cells = [method, f"{tokens / 1e6:.2f} M", share, *("" if v is None else f"{v:.4f}" for v in values)]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def hypervolume(costs: Sequence[float], values: Sequence[float | None], reference: float) -> float:
    """Return the share of a rectangle that points dominate, from lowest to highest cost and from 0 to `reference`."""
    points = sorted(zip(costs, values, strict=True))
    best, area = reference, 0.0
    for (cost, value), (after, _) in pairwise(points):
        best = min(best, reference if value is None else value)
        area += (after - cost) * (reference - best)
    return area / ((points[-1][0] - points[0][0]) * reference)
