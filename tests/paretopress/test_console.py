"""What is printed: tables that fit, progress that tells, errors in one line."""

import io
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from paretopress import console
from paretopress.search.event import Event


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "monotonic", found)
    return found


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


def front(kind: str, unit: str, budgets: list[str]) -> dict[str, Any]:
    return {
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
    lines = printed(console.front_table(front(kind, unit, budgets)), width)
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
    lines = printed(console.front_table(front("bits", "bits/weight", ["bits 2", "bits 3"])), 120)
    first = [line.split("  ")[0].strip() for line in lines]
    methods = [
        next((m for m in ("uniform", "dp-nmse", "front: dp") if f" {m} " in line), "") for line in lines
    ]
    assert [m for m in methods if m] == ["uniform", "dp-nmse", "front: dp"] * 2
    assert first[methods.index("uniform")] == "bits 2"
    assert first.count("bits 3") == 1


def test_lines_tell_when_a_stage_begins_every_ten_seconds_and_at_its_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    listen = console.Lines()
    listen(Event("open", 0))
    for tokens in (4_000, 5_000, 54_000, 104_000, 111_111, 111_111):
        listen(Event("search", tokens, 111_111, "best 0.5"))
        clock.now += 6
    assert capsys.readouterr().out.splitlines() == [
        "open",
        "search: 4,000 of 111,111 tokens, best 0.5",
        "search: 54,000 of 111,111 tokens, 4,167 tokens/s, at most 14 s left, best 0.5",
        "search: 111,111 of 111,111 tokens, 4,463 tokens/s, best 0.5",
    ]


def test_bars_show_rate_and_time_left(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(
        console, "console", Console(force_terminal=True, width=80, file=out, color_system=None)
    )
    with console.progress() as listen:
        listen(Event("build levels", 1, 8, "block-000"))
        listen(Event("search", 100_000, 400_000, "best 0.5 [red]"))
        clock.now += 100
        listen(Event("search", 200_000, 400_000, "best 0.25 0.125 [red]"))
        clock.now += 15
    line = next(line for line in reversed(out.getvalue().splitlines()) if line.startswith("search"))
    assert " 50% 1,000 tokens/s 3:05 best 0.25 0.125 [red]" in line
    assert len(line) <= 80


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    out = io.StringIO()
    monkeypatch.setattr(console, "errors", Console(width=20, file=out))
    return out.getvalue


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("fact,\n  value [1];\n remedy"), "fact, value [1]; remedy"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), "a.txt: No such file or directory"),
        (BlockingIOError(11, "run x is in use by process 7"), "run x is in use by process 7"),
        (FileNotFoundError("no run at x"), "no run at x"),
    ],
)
def test_errors_take_one_line(error: Exception, line: str, stderr: Callable[[], str]) -> None:
    assert console.fail(error) == 2
    assert stderr() == f"paretopress: {line}\n"


def test_warnings_of_the_project_reach_the_person(stderr: Callable[[], str]) -> None:
    log = logging.getLogger("paretopress")
    before = list(log.handlers)
    try:
        console.settle_output()
        console.settle_output()
        logging.getLogger("paretopress.evaluators.journal").warning("%d damaged lines", 3)
    finally:
        log.handlers[:] = before
    assert stderr() == "paretopress: 3 damaged lines\n"
