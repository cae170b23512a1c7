"""The command on a Ray cluster of processes: the same front and journal as in one process."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from paretopress.search.assembly import assemble
from paretopress.search.configuration import RunConfig
from paretopress.search.ray_site import RaySite, _open, open_evaluator
from paretopress.search.site import LocalSite
from paretopress.spaces.database import LevelDatabase
from paretopress.workers.configuration import RayConfig
from paretopress.workers.ray_cluster import Share
from paretopress.workers.ray_errand import RayErrands
from tests.end_to_end.conftest import Driver, Tiny
from tests.end_to_end.test_resume import Case
from tests.end_to_end.tiny import FRONTIER, ROOT, evolution

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """A cluster, and the environment in which the command finds it."""
    context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": context.address_info["address"]}
    ray.shutdown()


def test_two_workers_find_the_same_front(
    driver: Driver, tiny: Tiny, tmp_path: Path, cluster: dict[str, str]
) -> None:
    case = Case(driver, tiny, tmp_path, search=[FRONTIER, evolution(3)])
    folder = case.make("ray")
    command = [sys.executable, "-m", "paretopress", "search", str(case.config), "--workers", "ray"]
    command += ["--set", "workers.number=2", "--set", "workers.cpus=1"]
    done = subprocess.run(command, cwd=folder, env=cluster, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    case.check(folder)
    assert "1 of 2 workers" in done.stdout + done.stderr


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


def test_levels_come_from_a_worker_that_has_a_disk_of_its_own(
    tiny: Tiny, tmp_path: Path, cluster: dict[str, str]
) -> None:
    config = RunConfig.model_validate(tiny.content(workers={"kind": "ray", "cpus": 1}))
    assert isinstance(config.workers, RayConfig)
    with closing(RaySite(config, config.workers, tmp_path / "here")) as site:
        local = LocalSite(assemble(config, tmp_path / "local"))
        assert site.fingerprint == local.fingerprint
        assert site.check().perplexity == local.check().perplexity
        # Another folder stands for another machine's.
        opened = partial(_open, site.assembly.config.model_dump(mode="json"), tmp_path / "there")
        site._errands = RayErrands(partial(opened, site.assembly.data), config.workers)
        told: list[str] = []
        site.build(told.append)
        local.build(lambda part: None)
        assert len(told) == 2
        assert site.assembly.database.dump() == local.assembly.database.dump()
        assert (tmp_path / "there").is_dir()
