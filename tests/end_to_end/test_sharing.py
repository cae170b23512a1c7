"""Runs over one database share what they measured, and find what they would have found alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from paretopress.evaluators.trial import Trial
from paretopress.search.jobs import job
from paretopress.search.run.configuration import load_config
from tests.end_to_end.conftest import Tiny
from tests.end_to_end.tiny import LENGTH, evolution

Position = tuple[str, str, int, int]
FIRST: dict[str, Any] = {
    "name": "first",
    "search": [evolution(2), {"method": "dp", "tokens": LENGTH}],
    "budgets": [{"bits": 3.5}, {"bits": 4.5}],
}
OTHERS: dict[str, dict[str, Any]] = {
    "another budget": {"search": FIRST["search"], "budgets": [{"bits": 4.0}]},
    "another method": {
        "search": [{"method": "random", "samples": 8, "tokens": 2 * LENGTH}],
        "budgets": FIRST["budgets"],
    },
    "more tokens": {"search": [{"method": "dp", "tokens": 4 * LENGTH}], "budgets": FIRST["budgets"]},
    "another archive": {"search": FIRST["search"], "budgets": [{"bits": 3.5}], "archive_tokens": 10 * LENGTH},
}


@pytest.fixture(scope="module")
def first(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharing")
    job.run(load_config(tiny.config(folder, **FIRST)), folder / "runs" / "first")
    return folder / "runs"


def positions(journal: Path) -> set[Position]:
    """Model, data, order and position of everything that a run used."""
    found: set[Position] = set()
    for line in journal.read_text().splitlines()[1:]:
        _, key, data, seed, _, start, stop, *_ = json.loads(line[9:])
        here = {(key, data, seed, position) for position in range(start, stop)}
        assert not here & found
        found |= here
    return found


@pytest.mark.parametrize("change", OTHERS)
def test_a_later_run_measures_only_what_is_new(
    change: str, first: Path, tiny: Tiny, tmp_path: Path, asked: list[Trial]
) -> None:
    shutil.copytree(first, tmp_path / "runs", symlinks=True)
    (link,) = (tmp_path / "runs" / "databases").glob("*/values/first.jsonl")
    assert link.is_symlink()
    config = load_config(tiny.config(tmp_path, name="second", **OTHERS[change]))
    shared = job.run(config, tmp_path / "runs" / "second")
    measured = sum(trial.fidelity.sequences for trial in asked)
    asked.clear()
    alone = job.run(config, tmp_path / "alone" / "second")
    without = sum(trial.fidelity.sequences for trial in asked)

    assert shared.model_copy(update={"seconds": alone.seconds}) == alone
    used = positions(tmp_path / "runs" / "second" / "journal.jsonl")
    assert used == positions(tmp_path / "alone" / "second" / "journal.jsonl")
    known = used & positions(tmp_path / "runs" / "first" / "journal.jsonl")
    assert known
    assert without == len(used)
    assert measured == len(used) - len(known)


def test_runs_over_other_levels_share_nothing(
    first: Path, tiny: Tiny, tmp_path: Path, asked: list[Trial]
) -> None:
    shutil.copytree(first, tmp_path / "runs", symlinks=True)
    builder = tiny.content()["builder"] | {"scales": "minmax"}
    config = load_config(tiny.config(tmp_path, builder=builder, **FIRST | {"name": "second"}))
    job.run(config, tmp_path / "runs" / "second")
    used = positions(tmp_path / "runs" / "second" / "journal.jsonl")
    assert sum(trial.fidelity.sequences for trial in asked) == len(used)
