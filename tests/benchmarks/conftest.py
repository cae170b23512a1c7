"""A tiny made model with its levels, shared by the tests of the benchmark."""

from pathlib import Path

import pytest

from benchmarks.opening import Wanted
from benchmarks.speed.generation import Bench, Plan

PLAN = Plan(6, (4, 2, 1), (128, 256, 640))


@pytest.fixture(autouse=True)
def _short_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix rate from products of milliseconds, for tests that do not look at it."""
    monkeypatch.setattr("benchmarks.speed.floor.ENOUGH", 0.002)


@pytest.fixture(scope="session")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Wanted:
    """What the command line would say."""
    return Wanted(
        folder=tmp_path_factory.mktemp("population"),
        config=Path("configs/benchmarks/population.yaml"),
        overrides=("evaluation.threads=1", "evaluation.device=cpu", "evaluation.micro_batch=2"),
        model=None,
        shape="tiny",
        length=128,
        plan=PLAN,
        runs=1,
    )


@pytest.fixture
def bench(wanted: Wanted) -> Bench:
    """A fresh evaluator over levels that are built once."""
    return wanted.open()
