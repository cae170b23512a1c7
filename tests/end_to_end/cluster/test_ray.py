"""The command on a Ray cluster of processes: the same front and journal as in one process."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from paretopress.search.run.assembly import assemble
from paretopress.search.run.configuration import RunConfig
from paretopress.search.site import ray_site
from paretopress.search.site.ray_site import Folders, RaySite, _awaited, _open, open_evaluator
from paretopress.search.site.sending import elsewhere, packed
from paretopress.search.site.site import LocalSite
from paretopress.spaces.storage.database import LevelDatabase
from paretopress.workers.cluster.ray_cluster import Share
from paretopress.workers.cluster.ray_errand import RayErrands
from paretopress.workers.configuration import RayConfig
from tests.end_to_end.conftest import Driver, Tiny
from tests.end_to_end.test_resume import Case
from tests.end_to_end.tiny import FRONTIER, ROOT, evolution

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster(ray_address: str) -> dict[str, str]:
    """The environment in which the command finds the cluster."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": ray_address}


@pytest.mark.slow
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
    content, share = elsewhere(assembly.config), Share()
    folders = Folders(tmp_path, dict)
    here = assembly.evaluator().recipe
    other = {**assembly.recipe, "numerics": {**assembly.recipe["numerics"], "torch": "0.1"}}
    nothing: Callable[[], None] = lambda: None  # noqa: E731
    with pytest.raises(
        ValueError, match=r"not be comparable: numerics\.torch is .*, not \"0\.1\"; use nodes"
    ):
        open_evaluator(content, folders, assembly.data, {**here, "recipe": other}, nothing, share)
    with pytest.raises(FileNotFoundError, match=r"no levels at .*; use a folder that every node sees"):
        open_evaluator(content, folders, assembly.data, here, nothing, share)
    assembly.build(lambda part: None)
    opened = open_evaluator(content, folders, assembly.data, here, nothing, share)
    assert opened.fingerprint == assembly.evaluator().fingerprint
    away = tmp_path / "away"
    lost = {**content, "model": "/nowhere/model"}
    there = Folders(away / "databases", partial(packed, content))
    opened = open_evaluator(lost, there, assembly.data, here, assembly.database.dump, share)
    assert opened.database.errors() == assembly.database.errors()
    copy = LevelDatabase(away / "databases" / assembly.database.path.name, assembly.database.recipe)
    assert copy.dump() == assembly.database.dump()


def test_levels_that_a_shared_folder_shows_late_are_waited_for(tiny: Tiny, tmp_path: Path) -> None:
    config = RunConfig.model_validate(tiny.content())
    built = assemble(config, tmp_path)
    built.build(lambda part: None)
    record = next(built.database.path.glob("*.safetensors.json"))
    late = tmp_path / "late"
    record.rename(late)
    timer = threading.Timer(0.5, late.rename, [record])
    timer.start()
    assert _awaited(assemble(config, tmp_path)) == 0
    timer.join()
    assert _awaited(assemble(config, tmp_path / "nowhere")) == len(built.labels)


@pytest.mark.slow
def test_levels_come_from_a_worker_that_has_a_disk_of_its_own(
    tiny: Tiny, tmp_path: Path, cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig.model_validate(tiny.content(workers={"kind": "ray", "cpus": 1}))
    assert isinstance(config.workers, RayConfig)
    with closing(RaySite(config, config.workers, tmp_path / "here")) as site:
        local = LocalSite(assemble(config, tmp_path / "local"))
        assert site.fingerprint == local.fingerprint
        assert site.check().perplexity == local.check().perplexity
        assert site._shared()
        # Another folder stands for another machine's.
        there = {**elsewhere(site.assembly.config), "model": "/nowhere/model"}
        sent = partial(packed, elsewhere(site.assembly.config))
        opened = partial(_open, there, Folders(tmp_path / "there" / "databases", sent))
        site._errands = RayErrands(partial(opened, site.assembly.data), config.workers)
        told: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(ray_site, "MOST", 0)
            patch.setattr(ray_site, "_LATE", 0.0)
            with pytest.raises(ValueError, match=r"bytes of levels are too large to send .* does not see"):
                site.build(told.append)
        assert told == []
        site.build(told.append)
        local.build(lambda part: None)
        assert len(told) == 2
        assert site.assembly.database.dump() == local.assembly.database.dump()
        assert not list((tmp_path / "here").glob(".*"))
