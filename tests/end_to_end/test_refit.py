"""A finished run refitted: what its front says, what is exported and what is evaluated are one model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from paretopress.exporters.export import export_run
from paretopress.exporters.report.report import write_report
from paretopress.search.folder.front import Refit
from paretopress.search.folder.runfolder import RunFolder
from paretopress.search.jobs import job
from paretopress.search.jobs.measure import measure_model, measure_profile
from paretopress.search.jobs.refit import refit
from paretopress.search.run.configuration import load_config
from paretopress.search.run.event import Event
from paretopress.spaces.model.dense_model import DenseModel
from tests.end_to_end.conftest import Finished

PROFILE = "profiles/bits-3.5.yaml"


@pytest.fixture
def run(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished run with its level databases."""
    shutil.copytree(finished.folder / "runs", tmp_path / "runs", symlinks=True)
    return tmp_path / "runs" / "tiny"


def front_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "front.json").read_text())
    return found


def test_front_export_and_evaluation_agree_on_a_refit(run: Path, tmp_path: Path) -> None:
    before = front_of(run)
    front = refit(run, report=write_report).record()
    assert {"format_version": 1, **front} == front_of(run)
    config = load_config(run / "config.yaml")
    for old, new in zip(before["points"], front["points"], strict=True):
        record = new.pop("refit")
        assert new == old, "the figures of the search stay"
        assert record["kept"]
        assert record["p_value"] <= 0.05
        assert record["validation_gain"] > 0
        assert record["heldout_kl"] < old["heldout_kl"]
        name = old["budget"].replace(" ", "-")
        profile = yaml.safe_load((run / "profiles" / f"{name}.yaml").read_text())
        kl = pytest.approx(record["heldout_kl"], rel=1e-6)
        assert profile["heldout"]["kl"] == kl
        figures = measure_profile(config, profile["units"], run.parent / "databases", "heldout", run)
        assert figures["kl"] == kl
        assert figures["perplexity"] == pytest.approx(record["heldout_perplexity"])
        assert figures["refitted layers"] == 14
        plain = measure_profile(config, profile["units"], run.parent / "databases", "heldout")
        assert plain["kl"] == pytest.approx(old["heldout_kl"], rel=1e-6)
        lines = export_run(run, tmp_path / name, budget=old["budget"])
        assert lines[1].startswith(
            f"refitted weights; held-out kl {record['heldout_kl']:.6g}, held-out perpl"
        )
        exported = measure_model(config, DenseModel.open(tmp_path / name), "heldout")
        assert exported["kl"] == pytest.approx(record["heldout_kl"], rel=1e-3)
        assert exported["perplexity"] == pytest.approx(record["heldout_perplexity"], rel=1e-3)
        assert (
            json.loads((tmp_path / name / "paretopress.json").read_text())["profile"]["heldout"]["kl"] == kl
        )
    page = (run / "report.html").read_text()
    assert page.count(">refit</td>") == 2


def test_an_interrupted_refit_goes_on_where_it_stopped(run: Path, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "runs", tmp_path / "whole", symlinks=True)
    whole = refit(tmp_path / "whole" / "tiny")
    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)
        if (event.stage, event.done) == ("refit bits 4.5", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refit(run, listen=listen)
    half = front_of(run)
    assert "refit" in half["points"][0]
    assert "refit" not in half["points"][1]
    first = (run / "refits" / "bits-3.5" / "block-000.safetensors").stat().st_mtime_ns
    events.clear()
    assert refit(run, listen=lambda event: events.append(event)) == whole
    assert (run / "refits" / "bits-3.5" / "block-000.safetensors").stat().st_mtime_ns == first
    assert {event.stage for event in events} == {"open model and text", "refit bits 4.5"}
    events.clear()
    assert refit(run, listen=lambda event: events.append(event)) == whole
    assert [event.stage for event in events] == ["open model and text"]


def test_one_budget_is_refitted_and_a_search_that_goes_on_keeps_it(run: Path) -> None:
    refitted = refit(run, "3.5")
    assert [point.refit is not None for point in refitted.points] == [True, False]
    profile = (run / PROFILE).read_text()
    job.run(load_config(run / "config.yaml"), run)
    assert Refit(**front_of(run)["points"][0]["refit"]) == refitted.points[0].refit
    assert (run / PROFILE).read_text() == profile
    job.run(load_config(run / "config.yaml"), run, fresh=True)
    assert "refit" not in front_of(run)["points"][0]
    assert not (run / "refits").exists()


def test_runs_that_cannot_be_refitted_say_why(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no front yet; let the search finish, then refit"):
        refit(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(ValueError, match="budget '9' is not one of this run's; known: bits 3.5, bits 4.5"):
        refit(run, "9")
    with RunFolder(run), pytest.raises(BlockingIOError, match="is in use by process"):
        refit(run)
    front = front_of(run)
    valid = front["fingerprints"]["validation"]
    front["fingerprints"]["validation"] = "another"
    (run / "front.json").write_text(json.dumps(front))
    with pytest.raises(ValueError, match="was made with another validation: a refit cannot be compared"):
        refit(run)
    shutil.rmtree(run.parent / "databases")
    front["fingerprints"]["validation"] = valid
    (run / "front.json").write_text(json.dumps(front))
    with pytest.raises(FileNotFoundError, match="holds no levels; build them again with `paretopress build`"):
        refit(run)


def test_a_kept_refit_that_is_gone_or_damaged_is_not_exported(run: Path, tmp_path: Path) -> None:
    refit(run, "3.5")
    file = run / "refits" / "bits-3.5" / "block-001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="does not match its checksum"):
        export_run(run, tmp_path / "out", budget="3.5")
    file.unlink()
    file.with_name(f"{file.name}.json").unlink()
    refit(run, "3.5")
    export_run(run, tmp_path / "again", budget="3.5")
    shutil.rmtree(run / "refits")
    with pytest.raises(FileNotFoundError, match="build them again with `paretopress refit`"):
        export_run(run, tmp_path / "out", budget="3.5")
    refit(run, "3.5")
    export_run(run, tmp_path / "out", budget="3.5")
