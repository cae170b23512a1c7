"""The rows of `drop`: what each method found within each budget, against the best state there."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import comb
from statistics import mean
from typing import Any

from .drop_states import SAME, Measured

EQUAL = "evolution, equal"
"""EvoPress with its rule of equal counts."""

TOGETHER = ("frontier", "greedy")
"""Methods of which one run serves all budgets, so that each row has the tokens of the whole run."""


@dataclass(frozen=True)
class Result:
    """What one run found within one budget.

    Attributes:
        method: a column of the table.
        dropped: branches, at least.
        seed: of the search.
        kl: on the archive's prefix.
        drops: branches that the profile found drops.
        tokens: of the run.
        seconds: of the run.
        profile: unit to label.
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
    """The lowest value known within a budget: of all its states where they are measured, and of every run."""
    found = [result.kl for result in results if result.drops >= dropped]
    return min([*found, *map(float, measured.within(dropped)[:1])])


def rows(measured: Measured, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Every result as a record: the optimum of its budget, whether it was found, and the rank among the states."""
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
    """Whether a run of the rule of equal counts found the best of the states that it allows; None for others."""
    if result.method != EQUAL or result.dropped not in measured.complete:
        return None
    return result.kl <= measured.best_equal(result.dropped) + SAME


def table(found: Sequence[dict[str, Any]], branches: int) -> str:
    """One line per budget, one column per method: seeds that found the best, mean KL, worst rank, mean tokens."""
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
    """Budgets times seeds that found the best, and the mean over seeds of the tokens of all budgets."""
    found = f"{sum(row['found'] for row in own)}/{len(own)}"
    return f"{found}, {_millions(mean(tokens_by_seed(own).values()))}"


def tokens_by_seed(own: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Seed to the tokens that one method spent on all budgets."""
    tokens: dict[int, int] = {}
    for row in own:
        before = tokens.get(row["seed"], 0)
        tokens[row["seed"]] = row["tokens"] if row["method"] in TOGETHER else before + row["tokens"]
    return tokens


def _millions(tokens: float) -> str:
    return f"{tokens / 1e6:.2f} M"
