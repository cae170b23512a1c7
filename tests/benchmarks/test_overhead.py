"""The benchmark of overhead: its clock, its figures, its table."""

import time

import pytest

from benchmarks.speed.overhead import (
    COLUMNS,
    FIGURES,
    PARTS,
    Clock,
    Job,
    allocation,
    counting,
    layered_space,
    main,
    measure,
    measured,
)
from paretopress.search.run.method_registry import METHODS

pytestmark = pytest.mark.slow


def work(seconds: float) -> None:
    """Use this thread's processor time up."""
    begun = time.thread_time()
    while time.thread_time() - begun < seconds:
        pass


def test_the_clock_counts_inner_calls_with_the_outer_one() -> None:
    clock = Clock()
    inner = clock.timed("inner", lambda: work(0.01))

    def both() -> None:
        inner()
        work(0.01)

    clock.timed("outer", both)()
    inner()
    assert clock.seconds["outer"] == pytest.approx(0.02, rel=0.5)
    assert clock.seconds["inner"] == pytest.approx(0.01, rel=0.5)
    assert clock.calls == {"outer": 1, "inner": 1}


def test_counting_itself_takes_time() -> None:
    assert min(counting()) > 0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_measured_by_its_parts(method: str) -> None:
    row = measure(Job(method, 14, 2, evaluations=10, seconds=30.0))
    assert tuple(row) == COLUMNS
    assert row["evaluations"] >= 10
    assert row["ask"] > 0
    assert row["journal"] > 0
    assert row["pool"] > 0
    assert row["driver"] == pytest.approx(sum(row[part] for part in PARTS))
    assert all(row[part] > -1 for part in PARTS)


def test_what_takes_too_long_is_given_up() -> None:
    row = measured(Job("random", 14, 1, evaluations=10, seconds=30.0), limit=0.01)
    assert row == dict.fromkeys(COLUMNS) | {"method": "random", "units": 14}


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--allocate", "--units", "14", "--methods", "random", "--evaluations", "5", "--budgets", "1"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[3].split()[:2] == ["method", "units"]
    assert printed[-1].split()[:2] == ["random", "14"]
    assert len(printed[-1].split()) == len(COLUMNS)


def test_the_space_is_layered_like_a_model() -> None:
    space = layered_space(15)
    assert [unit.block for unit in space.units] == [0] * 7 + [1] * 7 + [2]
    cheapest, dearest = (space.extreme("bits", largest=largest) for largest in (False, True))
    assert space.cost(cheapest, "bits") / space.weights == 2.125
    assert space.cost(dearest, "bits") / space.weights == 6.125


def test_allocation_is_measured_with_its_gap() -> None:
    proved, near = (allocation(costs, 70, budgets=5) for costs in ("bits", "uneven"))
    assert tuple(proved) == FIGURES
    assert (proved["proved"], proved["gap %"], proved["largest %"]) == ("yes", 0.0, 0.0)
    assert near["proved"] == "no"
    assert 0 < near["gap %"] < 20
    assert 0 < near["largest %"] < 20
