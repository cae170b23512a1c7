"""`paretopress evaluate --tasks`: a profile, its exports and the dense model through the command line."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from paretopress.exporters.evaluate import profile_checkpoint
from paretopress.exporters.export import export_run
from paretopress.exporters.report.task_scores import read_scores
from paretopress.search.jobs.refit import refit
from paretopress.search.run.configuration import load_config
from paretopress.spaces.model.checkpoint import Checkpoint
from tests.end_to_end.conftest import Finished, shell
from tests.exporters.cases import load
from tests.tasks import accuracies, cached_in, log_likelihoods, perplexity, write_likelihood, write_task

PROFILE = "runs/tiny/profiles/bits-3.5.yaml"


@pytest.fixture(autouse=True)
def _there(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.folder)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str | Path]]:
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("tasks")
    with cached_in(folder / "cache"):
        yield ["--tasks", write_task(folder, "names"), "--tasks", write_likelihood(folder)]


def scored(*arguments: str | Path) -> dict[str, Any]:
    """What a command prints as JSON, its scores by task and metric."""
    answer = shell("evaluate", *arguments, "--json")
    assert (answer.code, answer.err) == (0, "")
    found: dict[str, Any] = json.loads(answer.out)
    found["tasks"] = {(row["task"], row["metric"]): row for row in found["tasks"]}
    return found


@pytest.fixture(scope="module")
def found(finished: Finished, tasks: list[str | Path]) -> dict[str, Any]:
    return scored(finished.folder / PROFILE, *tasks)


def test_a_profile_and_its_exports_have_the_same_scores(
    finished: Finished, tasks: list[str | Path], found: dict[str, Any], tmp_path: Path
) -> None:
    point = finished.front["points"][0]
    assert found["figures"]["perplexity"] == pytest.approx(point["heldout_perplexity"], rel=1e-7)
    assert found["figures"]["kl"] == pytest.approx(point["heldout_kl"], rel=1e-7)
    for form, options in (("hf", ()), ("compressed-tensors", ("--fused", "keep"))):
        out = tmp_path / form
        answer = shell("export", "runs/tiny", "--budget", "3.5", "--output", out, "--format", form, *options)
        assert answer.code == 0, answer.err
        exported = scored(out, "--run", "runs/tiny", *tasks, "--no-dense")
        assert exported["tasks"] == {
            key: {name: value for name, value in row.items() if not name.startswith("dense")}
            for key, row in found["tasks"].items()
        }
        assert exported["figures"]["perplexity"] == pytest.approx(found["figures"]["perplexity"], rel=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    for key, folder in (("value", tmp_path / "hf"), ("dense", finished.front["model"])):
        plain = log_likelihoods(load(folder, dtype="float32"), tokenizer)
        assert found["tasks"]["names", "acc"][key] == accuracies(plain)[0]
        likelihood = found["tasks"]["likelihood", "perplexity"][key]
        assert likelihood == pytest.approx(perplexity(plain), rel=1e-5)


def test_a_refitted_profile_in_memory_is_its_export(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.folder / "runs", tmp_path / "runs", symlinks=True)
    run = tmp_path / "runs" / "tiny"
    point = refit(run, "3.5").points[0]
    assert point.refit is not None
    assert point.refit.kept
    export_run(run, tmp_path / "out", budget="3.5")
    config, databases = load_config(run / "config.yaml"), run.parent / "databases"
    refitted, plain = (profile_checkpoint(config, point.profile, databases, run_) for run_ in (run, None))
    written = Checkpoint(tmp_path / "out")
    names = list(written.skeleton().state_dict())
    assert all(torch.equal(refitted.tensor(name), written.tensor(name)) for name in names)
    assert not all(torch.equal(plain.tensor(name), written.tensor(name)) for name in names)


def test_the_table_stands_below_the_figures(tasks: list[str | Path], found: dict[str, Any]) -> None:
    answer = shell("evaluate", PROFILE, *tasks)
    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert lines[0] == f"kl: {found['figures']['kl']:,.8g}"
    (row,) = (line.split() for line in lines if line.startswith("names") and "acc " in line)
    figures = found["tasks"]["names", "acc"]
    wanted = [f"{figures[key]:.4f}" for key in ("value", "error", "dense", "dense_error")]
    assert row == ["names", "acc", "↑", str(figures["samples"]), *wanted]
    alone = shell("evaluate", PROFILE, *tasks, "--no-dense").out.splitlines()
    (row,) = (line.split() for line in alone if line.startswith("names") and "acc " in line)
    assert row == ["names", "acc", "↑", str(figures["samples"]), *wanted[:2]]


def test_the_report_shows_tasks_beside_figures(
    finished: Finished, tasks: list[str | Path], found: dict[str, Any]
) -> None:
    run = finished.folder / "runs" / "tiny"
    assert shell("evaluate", PROFILE, *tasks[:2], "--no-dense").code == 0
    (record,) = (r for r in read_scores(run) if r["target"] == PROFILE)
    assert {(row["task"], row["metric"]) for row in record["tasks"]} == found["tasks"].keys()
    report = (run / "report.html").read_text()
    figures = found["tasks"]["likelihood", "perplexity"]
    for shown in (
        "<h2>Tasks</h2>",
        PROFILE,
        f"<td>{found['figures']['kl']:.4g}</td>",
        f"{figures['dense']:.4g}",
    ):
        assert shown in report


def test_figures_without_tasks_as_json() -> None:
    answer = shell("evaluate", PROFILE)
    figures = dict(line.split(": ") for line in answer.out.splitlines())
    found = scored(PROFILE)
    assert found["tasks"] == {}
    assert {
        name: f"{value:,.8g}" for name, value in found["figures"].items() if isinstance(value, float)
    } == {name: value for name, value in figures.items() if isinstance(found["figures"][name], float)}
    assert figures.keys() == found["figures"].keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("task: t\nprocess_docs: !function own.run\n", "runs Python code (!function own.run), which is not "),
        ("group: g\n", "has no `task` with a name; give the file of each task, not of a group"),
        (None, "task.yaml: No such file or directory"),
    ],
)
def test_task_files_that_cannot_work(content: str | None, message: str, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    path = tmp_path / "task.yaml"
    if content is not None:
        path.write_text(content)
    answer = shell("evaluate", PROFILE, "--tasks", path)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("paretopress: ")
    assert message in answer.err
    assert answer.err.count("\n") == 1


def test_without_lm_eval_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    answer = shell("evaluate", PROFILE, "--tasks", write_task(tmp_path, "names"))
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == "paretopress: --tasks needs lm-eval; pip install 'paretopress[eval]'\n"
