"""A run that starts from another's front measures it first and is never worse on calibration text."""

from pathlib import Path

import pytest

from paretopress.search.jobs import job
from paretopress.search.run.configuration import load_config
from tests.end_to_end.conftest import Tiny
from tests.end_to_end.tiny import LENGTH, evolution

DP = {"method": "dp", "tokens": 4 * LENGTH}


def test_a_run_starts_from_another_front(tiny: Tiny, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first = job.run(load_config(tiny.config(tmp_path, name="first", search=[DP])), runs / "first")
    config = tiny.config(
        tmp_path, name="second", search=[evolution(1, offspring=2)], start_from=str(runs / "first")
    )
    second = job.run(load_config(config), runs / "second")
    found = [entry for entry in second.archive if entry in first.archive]
    assert [first.points[0].cost, first.points[0].fitness] in found
    fitness = [front.points[0].fitness for front in (second, first)]
    assert fitness == sorted(value for value in fitness if value is not None)


def test_starts_that_cannot_be_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny.config(tmp_path, start_from=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="start_from .* has no front.json; finish that run first"):
        job.run(load_config(config), tmp_path / "runs" / "tiny")
