"""The command on a Ray cluster of processes: the same front and journal as in one process, stopped or not."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paretopress.search.assembly import assemble
from paretopress.search.configuration import RunConfig
from paretopress.search.ray_site import open_evaluator
from paretopress.spaces.database import LevelDatabase
from paretopress.workers.ray_cluster import Share
from tests.end_to_end.conftest import Driver, Tiny
from tests.end_to_end.test_resume import Case, steps
from tests.end_to_end.tiny import FRONTIER, LENGTH, ROOT, evolution

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """A cluster, and the environment in which the command finds it."""
    context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": context.address_info["address"]}
    ray.shutdown()


def start(config: Path, cwd: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "paretopress", "search", str(config), "--workers", "ray"]
    command += ["--set", "workers.number=2", "--set", "workers.cpus=1"]
    with (cwd / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=cwd, env=environment, stdout=log, stderr=log)


def test_two_workers_and_a_driver_that_is_stopped_find_the_same_front(
    driver: Driver, tiny: Tiny, tmp_path: Path, cluster: dict[str, str]
) -> None:
    """Slopes are of two micro-batches, one for each worker."""
    shared = FRONTIER | {"tokens": 8 * LENGTH, "around": 8 * LENGTH}
    case = Case(driver, tiny, tmp_path, search=[shared, evolution(3)])
    folder = case.make("ray")
    first = start(case.config, folder, cluster)
    began = time.monotonic()
    while steps(folder) < 4 and first.poll() is None and time.monotonic() - began < 120:
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGTERM)
    assert first.wait() == 130, (folder / "log").read_text()
    assert "To go on: paretopress search" in (folder / "log").read_text()
    assert 4 <= steps(folder) < steps(case.whole)
    assert start(case.config, folder, cluster).wait() == 0, (folder / "log").read_text()
    case.check(folder)
    assert "1 of 2 workers" in (folder / "log").read_text()


def test_a_worker_whose_values_would_differ_says_in_what(tiny: Tiny, tmp_path: Path) -> None:
    config = RunConfig.model_validate(tiny.content())
    assembly = assemble(config, tmp_path)
    content, share = assembly.config.model_dump(mode="json"), Share()
    here = assembly.evaluator().recipe
    other = {**assembly.recipe, "numerics": {**assembly.recipe["numerics"], "torch": "0.1"}}
    nothing: Callable[[], None] = lambda: None  # noqa: E731
    with pytest.raises(
        ValueError, match=r"not be comparable: numerics\.torch is .*, not \"0\.1\"; use nodes"
    ):
        open_evaluator(content, tmp_path, assembly.data, {**here, "recipe": other}, nothing, share)
    with pytest.raises(FileNotFoundError, match=r"no levels at .*; use a folder that every node sees"):
        open_evaluator(content, tmp_path, assembly.data, here, nothing, share)
    assembly.build(lambda part: None)
    opened = open_evaluator(content, tmp_path, assembly.data, here, nothing, share)
    assert opened.fingerprint == assembly.evaluator().fingerprint
    away = tmp_path / "away"
    opened = open_evaluator(content, away, assembly.data, here, assembly.database.dump, share)
    assert opened.database.errors() == assembly.database.errors()
    copy = LevelDatabase(away / assembly.database.path.name, assembly.database.recipe)
    assert copy.dump() == assembly.database.dump()
