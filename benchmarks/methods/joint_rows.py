"""The table of `joint`: the result of each space within each budget, and the gain of the joint space."""

import math
from collections.abc import Sequence
from typing import Any

from paretopress.search.folder.front import Front
from paretopress.spaces.space import Space

from .joint_spaces import mix

Row = dict[str, Any]
JOINT, SEEDED = "joint", "joint, from the single kinds"


def row_of(front: Front, budget: str, kind: str, space: Space, before: int = 0) -> Row:
    """Return the record of one budget of a finished run.

    Args:
        front: front of the run.
        budget: name of the budget.
        kind: name of the space in the table.
        space: space that was searched.
        before: number of tokens of the runs that this run started from.
    """
    point = front.find(budget)
    uniform = next(b for b in front.baselines if b.budget == budget and b.method == "uniform")
    return {
        "budget": budget,
        "space": kind,
        "feasible": True,
        "heldout_kl": _finite(point.heldout_kl),
        "heldout_interval": point.heldout_interval or [math.inf, math.inf],
        "heldout_perplexity": _finite(point.heldout_perplexity),
        "calibration_kl": point.fitness,
        "uniform_kl": _finite(uniform.heldout_kl),
        "bits": point.costs["bits"] / space.weights,
        "macs": point.costs["macs"] / space.weights,
        "tokens": (front.tokens or 0) + (front.teacher_tokens or 0) + before,
        "seconds": front.seconds,
        "winner": point.method,
        "mix": mix(point.profile, front.weights),
        "profile": point.profile,
    }


def _finite(figure: float | None) -> float:
    return math.inf if figure is None else figure


def infeasible(budget: str, kind: str, why: str) -> Row:
    """Return the record of a budget that no profile of a space meets, with the reason."""
    return {"budget": budget, "space": kind, "feasible": False, "why": why}


def table(rows: Sequence[Row]) -> str:
    """Format a markdown table with one line per budget and space."""
    lines = [
        "| budget | space | held-out KL | 95 % interval | uniform's | calibration KL | perplexity | bits | macs "
        "| tokens | winner | linear weights at |",
        "| --- " * 12 + "|",
    ]
    for row in rows:
        head = f"| {row['budget']} | {row['space']} "
        if not row["feasible"]:
            lines.append(f"{head}| infeasible: {row['why']} " + "| " * 9 + "|")
            continue
        low, high = row["heldout_interval"]
        shares = ", ".join(f"{label} {share:.1%}" for label, share in row["mix"].items())
        lines.append(
            f"{head}| {row['heldout_kl']:.4f} | {low:.4f} to {high:.4f} | {row['uniform_kl']:.4f} "
            f"| {'' if row['calibration_kl'] is None else format(row['calibration_kl'], '.4f')} "
            f"| {row['heldout_perplexity']:.3f} | {row['bits']:.4f} | {row['macs']:.4f} "
            f"| {row['tokens'] / 1e6:.2f} M | {row['winner']} | {shares} |"
        )
    return "\n".join(lines)


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Return one sentence per budget that compares the joint space with the best single kind on held-out text.

    The joint run that started from the single kinds stands for the joint space, where there is one.
    """
    found = []
    for budget in dict.fromkeys(row["budget"] for row in rows):
        here = [row for row in rows if row["budget"] == budget and row["feasible"]]
        joint = [row for row in here if row["space"] in (JOINT, SEEDED)]
        single = [row for row in here if row not in joint]
        if not joint:
            found.append(f"{budget}: not even the joint space is feasible")
            continue
        seeded = next((row for row in joint if row["space"] == SEEDED), joint[0])
        if not single:
            found.append(
                f"{budget}: only the joint space is feasible, held-out KL {seeded['heldout_kl']:.4f}"
            )
            continue
        best = min(single, key=lambda row: float(row["heldout_kl"]))
        gain = 1 - seeded["heldout_kl"] / best["heldout_kl"]
        how = "the same" if abs(gain) < 5e-4 else f"{abs(gain):.1%} {'lower' if gain > 0 else 'HIGHER'}"
        left = ", ".join(row["space"] for row in rows if row["budget"] == budget and not row["feasible"])
        found.append(
            f"{budget}: joint {seeded['heldout_kl']:.4f}, best single kind ({best['space']}) "
            f"{best['heldout_kl']:.4f}: held-out KL {how}" + (f"; infeasible: {left}" if left else "")
        )
    return found
