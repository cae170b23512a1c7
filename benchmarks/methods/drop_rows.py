"""The table of `drop`: the result of each method within each budget, compared with the best state."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import comb
from statistics import mean
from typing import Any

from .drop_states import SAME, Measured

EQUAL = "evolution, equal"
"""Name of EvoPress's evolution with its rule of equal counts of attention and MLP."""

TOGETHER = ("frontier", "greedy")
"""Methods whose single run serves all budgets, so that each of its rows has the tokens of the whole run."""


@dataclass(frozen=True)
class Result:
    """The best profile of one run within one budget.

    Attributes:
        method: column of the table that the run belongs to.
        dropped: budget as the least number of dropped branches.
        seed: seed of the search.
        kl: KL of the profile on the archive's prefix, in nats per token.
        drops: number of branches that the profile drops.
        tokens: number of tokens of the whole run.
        seconds: time of the whole run.
        profile: label of every unit by unit name.
    """

    method: str
    dropped: int
    seed: int
    kl: float
    drops: int
    tokens: int
    seconds: float
    profile: dict[str, str]


def best(measured: Measured, results: Iterable[Result], dropped: int) -> float:
    """Return the lowest KL known within a budget, of its measured states and of the results of all runs."""
    found = [result.kl for result in results if result.drops >= dropped]
    return min([*found, *map(float, measured.within(dropped)[:1])])


def rows(measured: Measured, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return every result as a record, with its budget's optimum, whether it was found, and the rank of the result."""
    optima = {dropped: best(measured, results, dropped) for dropped in {r.dropped for r in results}}
    return [
        asdict(result)
        | {
            "optimum": optima[result.dropped],
            "exhaustive": result.dropped in measured.complete,
            "found": result.kl <= optima[result.dropped] + SAME,
            "own": _own(measured, result),
            "rank": measured.rank(result.dropped, result.kl) if result.dropped in measured.complete else None,
        }
        for result in results
    ]


def _own(measured: Measured, result: Result) -> bool | None:
    """Return whether a run with the rule of equal counts found the best state that the rule allows.

    The result is None for other methods and where not all states are measured.
    """
    if result.method != EQUAL or result.dropped not in measured.complete:
        return None
    return result.kl <= measured.best_equal(result.dropped) + SAME


def table(found: Sequence[dict[str, Any]], branches: int) -> str:
    """Format a markdown table with one line per budget and one column per method.

    A cell has the seeds that found the optimum, the mean KL, the worst rank and the mean tokens.
    """
    methods = list(dict.fromkeys(row["method"] for row in found))
    lines = [
        "| dropped | states | optimum KL | " + " | ".join(methods) + " |",
        "| --- " * (len(methods) + 3) + "|",
    ]
    for dropped in sorted({row["dropped"] for row in found}):
        here = [row for row in found if row["dropped"] == dropped]
        note = "" if here[0]["exhaustive"] else " (best known)"
        cells = [_cell([row for row in here if row["method"] == method]) for method in methods]
        head = [str(dropped), f"{comb(branches, dropped):,}", f"{here[0]['optimum']:.5f}{note}"]
        lines.append("| " + " | ".join([*head, *cells]) + " |")
    totals = [_total([row for row in found if row["method"] == method]) for method in methods]
    return "\n".join([*lines, "| " + " | ".join(["all", "", "", *totals]) + " |"])


def _cell(own: Sequence[dict[str, Any]]) -> str:
    if not own:
        return "-"
    parts = [f"{sum(row['found'] for row in own)}/{len(own)}", f"{mean(row['kl'] for row in own):.5f}"]
    if own[0]["own"] is not None:
        parts[0] += f" (own {sum(row['own'] for row in own)}/{len(own)})"
    if own[0]["rank"] is not None:
        parts.append(f"rank {max(row['rank'] for row in own)}")
    if own[0]["method"] not in TOGETHER:
        parts.append(_millions(mean(row["tokens"] for row in own)))
    return ", ".join(parts)


def _total(own: Sequence[dict[str, Any]]) -> str:
    """Format how many runs of a method found the optimum, over budgets and seeds, and its mean tokens per seed."""
    found = f"{sum(row['found'] for row in own)}/{len(own)}"
    return f"{found}, {_millions(mean(tokens_by_seed(own).values()))}"


def tokens_by_seed(own: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Return for each seed the tokens that one method spent on all budgets."""
    tokens: dict[int, int] = {}
    for row in own:
        before = tokens.get(row["seed"], 0)
        tokens[row["seed"]] = row["tokens"] if row["method"] in TOGETHER else before + row["tokens"]
    return tokens


def _millions(tokens: float) -> str:
    return f"{tokens / 1e6:.2f} M"
