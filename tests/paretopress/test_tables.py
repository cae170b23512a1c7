"""Tables fit, and cut no figure."""

import io
from typing import Any

import pytest
from rich.console import Console

from paretopress.evaluators.tasks.harness import Score
from paretopress.exporters.evaluate import Compared
from paretopress.search.folder.front import Front
from paretopress.tables import front_table, task_table


def row(budget: str, method: str, kl: float, perplexity: float, **more: Any) -> dict[str, Any]:
    return {
        "budget": budget,
        "method": method,
        "cost": 12.345678,
        "bytes": 123_456_789_012,
        "heldout_kl": kl,
        "heldout_perplexity": perplexity,
        "heldout_interval": [kl - 0.01, kl + 0.012],
    } | more


def front(kind: str, unit: str, budgets: list[str]) -> Front:
    record = {
        "name": "a-long-name-of-a-run",
        "model": "some-organisation/a-model-with-a-name-of-some-length-8B-instruct",
        "cost_kind": kind,
        "cost_unit": unit,
        "dense": {"bytes": 16_060_522_496, "heldout_perplexity": 6.24},
        "points": [row(b, "dp+evolution+optuna", 0.01234, 7.654, p_value=0.00049) for b in budgets],
        "baselines": [
            baseline
            for b in budgets
            for baseline in (row(b, "dp-nmse", 1.2, 98765.4321), row(b, "uniform", 11.54321, 1234.5))
        ],
    }
    return Front.of(record, "front.json")


def printed(table: object, width: int) -> list[str]:
    out = Console(width=width, file=io.StringIO())
    out.print(table)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize(
    ("kind", "unit", "budgets"),
    [
        ("bits", "bits/weight", ["bits 2.75", "bits 3.25"]),
        ("bytes", "bytes", ["bytes 4.2GB"]),
        ("parameters", "fraction kept", ["sparsity 0.55"]),
        ("macs", "fraction of MACs", ["macs 0.8, bits 3.25"]),
        ("branches", "branches", ["dropped 12"]),
        ("latency", "µs/token", ["latency 123.5"]),
    ],
)
def test_the_table_cuts_no_figure(width: int, kind: str, unit: str, budgets: list[str]) -> None:
    lines = printed(front_table(front(kind, unit, budgets)), width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert "…" not in text
    for figure in (
        "11.54321",
        "1234.500",
        "1.20000",
        "98765.432",
        "0.01234",
        "7.654",
        "0.00049",
        "0.011",
        "123.5 GB",
    ):
        assert text.count(figure) >= len(budgets)
    assert text.count("12.3457") == (0 if kind == "bytes" else 3 * len(budgets))
    assert "16.06 GB, perplexity 6.240" in " ".join(text.split())
    for budget in budgets:
        assert all(word in text for word in budget.split())


def test_the_table_begins_each_budget_with_uniform_and_ends_with_the_front() -> None:
    lines = printed(front_table(front("bits", "bits/weight", ["bits 2", "bits 3"])), 120)
    first = [line.split("  ")[0].strip() for line in lines]
    methods = [next((m for m in ("uniform", "dp-nmse", "→ dp") if f" {m} " in line), "") for line in lines]
    assert [m for m in methods if m] == ["uniform", "dp-nmse", "→ dp"] * 2
    assert first[methods.index("uniform")] == "bits 2"
    assert first.count("bits 3") == 1


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("dense", [False, True])
def test_scores_stand_whole(width: int, dense: bool) -> None:
    rows = [
        Compared(
            Score(name, metric, value, error, 14042, higher),
            Score(name, metric, value / 3, error, 14042, higher) if dense else None,
        )
        for name, metric, value, error, higher in [
            ("mmlu_high_school_european_history", "acc", 0.54321, 0.012345, True),
            ("gsm8k", "exact_match (flexible-extract)", 1.0, None, True),
            ("text", "word_perplexity", 9_876_543_210.5, 123_456.7, False),
            ("own", "score", float("nan"), None, None),
        ]
    ]
    lines = printed(task_table(rows), width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    for figure in ("0.5432", "0.0123", "1.0000", "9.877e+09", "1.235e+05", "nan", "14,042"):
        assert figure in text
    assert ("0.1811" in text) is dense
    assert ("dense" in text) is dense
    assert (text.count("↑"), text.count("↓")) == (3, 2)  # the caption explains both
