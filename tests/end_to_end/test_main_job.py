"""The main job through the command line: search, then everything that is done with its run."""

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from paretopress.search.folder.runfolder import RunFolder
from paretopress.search.jobs.measure import measure_model, measure_profile
from paretopress.search.run.assembly import Assembly, assemble
from paretopress.search.run.configuration import load_config
from paretopress.spaces.model.dense_model import DenseModel
from paretopress.spaces.profile_file import read_profile
from tests.end_to_end.conftest import Answer, Finished, Tiny, shell
from tests.end_to_end.tiny import ROOT, evolution, subprocess_environment

load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
SAMPLES = ROOT / "tests" / "data" / "evopress"


def assembled(finished: Finished) -> Assembly:
    return assemble(load_config(finished.config), finished.folder / "runs" / "databases")


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below, with time of change and size."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in sorted(folder.rglob("*"))
    }


def test_a_run_leaves_what_the_design_says(finished: Finished) -> None:
    assert finished.answer.code == 0, finished.answer.err
    held = {path.name for path in finished.run.iterdir()} - {".lock"}
    files = {
        "config.yaml",
        "environment.json",
        "journal.jsonl",
        "checkpoint.json",
        "front.json",
        "report.html",
    }
    assert held == files | {"profiles"}
    assert {path.name for path in (finished.run / "profiles").iterdir()} == {"bits-3.5.yaml", "bits-4.5.yaml"}
    for name in ("environment.json", "checkpoint.json", "front.json"):
        assert json.loads((finished.run / name).read_text())["format_version"] == 1
    assert yaml.safe_load((finished.run / "config.yaml").read_text())["format_version"] == 1


def test_the_front_holds_exact_costs_within_the_budgets(finished: Finished) -> None:
    front, assembly = finished.front, assembled(finished)
    assert {"model", "cost_unit", "points", "baselines", "evaluations", "tokens", "seconds", "seed"} <= set(
        front
    )
    assert {"model", "space", "database", "evaluation", "calibration", "validation", "heldout"} == set(
        front["fingerprints"]
    )
    assert [point["budget"] for point in front["points"]] == ["bits 3.5", "bits 4.5"]
    assert sorted({row["method"] for row in front["baselines"]}) == ["dp-nmse", "uniform"]
    limits = {budget.name: limit for budget, limit in assembly.limits}
    for row in [*front["points"], *front["baselines"]]:
        profile = assembly.space.parse(row["profile"])
        assert row["costs"] == assembly.space.costs(profile)
        assert row["bytes"] == row["costs"]["bytes"]
        assert row["costs"]["bits"] <= limits[row["budget"]]["bits"]
        assert row["cost"] == row["costs"]["bits"] / assembly.space.weights
        low, high = row["heldout_interval"]
        assert 0 < low < row["heldout_kl"] < high
        assert row["heldout_perplexity"] > front["dense"]["heldout_perplexity"] > 1
    read = RunFolder(finished.run).read_front()
    assert read is not None
    assert read.points[0].profile == front["points"][0]["profile"]


def test_profiles_are_readable_and_complete(finished: Finished) -> None:
    for point in finished.front["points"]:
        profile = read_profile(finished.run / "profiles" / f"{point['budget'].replace(' ', '-')}.yaml")
        assert profile.units == point["profile"]
        assert profile.heldout == {"kl": point["heldout_kl"], "perplexity": point["heldout_perplexity"]}
        assert (profile.budget, profile.method) == (point["budget"], point["method"])


def test_the_output_is_quiet_and_ends_with_the_next_command(finished: Finished) -> None:
    out, lines = finished.answer.out, finished.answer.out.splitlines()
    assert finished.answer.err == ""
    assert "\x1b" not in out
    assert "\r" not in out
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("search") for line in lines) <= 3
    assert sum(line.startswith(" ") and "→ " in line for line in lines) == 2
    assert "report: runs/tiny/report.html" in lines
    command = shlex.split(lines[-1].removeprefix("next: paretopress "))
    assert command[0] == "export"


def test_the_next_command_works(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(finished.folder, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    command = shlex.split(finished.answer.out.splitlines()[-1].removeprefix("next: paretopress "))
    answer = shell(*command)
    assert answer.code == 0, answer.err
    assert (tmp_path / "copy" / "tiny-bits-4.5" / "model.safetensors").is_file()


def at(finished: Finished, monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> Answer:
    monkeypatch.chdir(finished.folder)
    return shell(*arguments)


def test_show_and_status(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = at(finished, monkeypatch, "show", "runs/tiny")
    assert (answer.code, answer.err) == (0, "")
    table = answer.out.strip()
    assert table in finished.answer.out
    for point in finished.front["points"]:
        assert f"{point['heldout_kl']:.5f}" in table
        assert f"{point['heldout_perplexity']:.3f}" in table
    answer = at(finished, monkeypatch, "show", "runs/tiny", "--json")
    assert json.loads(answer.out) == {k: v for k, v in finished.front.items() if k != "format_version"}
    answer = at(finished, monkeypatch, "status", "runs/tiny")
    assert "runs/tiny: finished; " in answer.out
    assert answer.out.splitlines()[-1] == "next: paretopress show runs/tiny"


def figures(text: str) -> dict[str, float]:
    return {
        name: float(value.replace(",", ""))
        for name, value in (
            line.split(": ") for line in text.splitlines() if re.search(r": [\d.,e-]+$", line)
        )
    }


def test_evaluating_a_profile_gives_the_figures_of_the_front(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    for point in finished.front["points"]:
        profile = f"runs/tiny/profiles/{point['budget'].replace(' ', '-')}.yaml"
        answer = at(finished, monkeypatch, "evaluate", profile)
        assert answer.code == 0, answer.err
        found = figures(answer.out)
        assert found["perplexity"] == pytest.approx(point["heldout_perplexity"], rel=1e-7)
        assert found["kl"] == pytest.approx(point["heldout_kl"], rel=1e-7)
        assert found["dense perplexity"] == pytest.approx(
            finished.front["dense"]["heldout_perplexity"], rel=1e-7
        )
        assert found["bytes"] == point["bytes"]
    config = load_config(finished.config)
    units = finished.front["points"][0]["profile"]
    exact = measure_profile(config, units, finished.folder / "runs" / "databases", "heldout")
    assert exact["perplexity"] == finished.front["points"][0]["heldout_perplexity"]


def plain_perplexity(model: Path, tokens_NT: torch.Tensor) -> float:
    """Of a folder that transformers loads, in float32, over all positions but the last of each sequence."""
    loaded = load(model, dtype=torch.float32)
    with torch.inference_mode():
        logits_NTV = loaded(input_ids=tokens_NT).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits_NTV.flatten(0, 1).double(), tokens_NT[:, 1:].flatten())
    return math.exp(loss.item())


def test_exports_have_the_perplexity_of_the_front(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = {point["budget"]: point for point in finished.front["points"]}
    choices = {
        "named": ("bits 3.5", ("--budget", "bits 3.5")),
        "numbered": ("bits 4.5", ("--budget", "4.5")),
        "profile": ("bits 3.5", ("--profile", "runs/tiny/profiles/bits-3.5.yaml")),
    }
    tokens_NT = torch.from_numpy(assembled(finished).data["heldout"].tokens.astype("int64"))
    for name, (budget, choice) in choices.items():
        answer = at(finished, monkeypatch, "export", "runs/tiny", *choice, "--output", tmp_path / name)
        assert answer.code == 0, answer.err
        wanted = points[budget]["heldout_perplexity"]
        assert plain_perplexity(tmp_path / name, tokens_NT) == pytest.approx(wanted, rel=2e-6)
        found = measure_model(load_config(finished.config), DenseModel.open(tmp_path / name), "heldout")
        assert found["perplexity"] == pytest.approx(wanted, rel=1e-6)
        assert found["kl"] == pytest.approx(points[budget]["heldout_kl"], rel=1e-5)
    answer = at(finished, monkeypatch, "evaluate", tmp_path / "named", "--run", "runs/tiny")
    assert figures(answer.out)["perplexity"] == pytest.approx(
        points["bits 3.5"]["heldout_perplexity"], rel=1e-6
    )


def test_a_dry_run_writes_nothing(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.config(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    answer = shell("search", config, "--dry-run")
    assert answer.code == 0, answer.err
    for word in ("units", "levels", "evaluations", "tokens", "time", "memory", "disk", "dense perplexity"):
        assert word in answer.out
    assert snapshot(tmp_path) == before


def test_levels_that_some_layers_do_not_take_are_told_before_any_work(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.config(tmp_path)
    monkeypatch.chdir(tmp_path)
    answer = shell("search", config, "--dry-run", "--set", "space.levels=[w2,w3,w4,'3:7']")
    assert answer.code == 0, answer.err
    assert re.search(
        r"levels: 3:7 left out for (\d+) of \1 layers, whose number of inputs is not a multiple of 7",
        answer.out,
    )


def test_a_dry_run_leaves_a_finished_run_alone(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(finished.folder)
    assert at(finished, monkeypatch, "search", finished.config, "--dry-run").code == 0
    assert snapshot(finished.folder) == before


def test_build_makes_the_levels_once(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.config(tmp_path)
    monkeypatch.chdir(tmp_path)
    answer = shell("build", config)
    assert answer.code == 0, answer.err
    (database,) = (tmp_path / "runs" / "databases").iterdir()
    assert f"levels: runs/databases/{database.name}" in answer.out
    assert answer.out.splitlines()[-1] == f"next: paretopress search {config}"
    assert not (tmp_path / "runs" / "tiny").exists()
    built = snapshot(database)
    assert {"manifest.json", "block-000.safetensors", "block-001.safetensors"} <= set(built)
    assert shell("build", config).code == 0
    assert snapshot(database) == built
    assert shell("search", config).code == 0
    after = snapshot(database)
    assert {name: after[name] for name in built} == built


def test_settings_from_the_command_line_and_a_fresh_start(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.config(tmp_path, search=[evolution(1)])
    monkeypatch.chdir(tmp_path)
    chosen = ("--set", "seed=5", "--set", "budgets={bits: 3.75}", "--run", "elsewhere/one")
    assert shell("search", config, *chosen).code == 0
    run = RunFolder(tmp_path / "elsewhere" / "one")
    stored, front = run.read_config(), run.read_front()
    assert stored is not None
    assert front is not None
    assert (stored["seed"], front.seed, front.points[0].budget) == (5, 5, "bits 3.75")
    lines = run.journal.read_text().splitlines()
    assert shell("search", config, *chosen).code == 0
    assert run.journal.read_text().splitlines() == lines
    answer = shell("search", config, *chosen, "--fresh", "--set", "seed=6")
    assert answer.code == 0, answer.err
    assert run.journal.read_text().splitlines() != lines


def test_importing_evopress_configurations(tmp_path: Path) -> None:
    wanted = {
        "tiny_3bit.txt": ("model.layers.0.self_attn.q_proj", "w2g128a"),
        "tiny_60.txt": ("model.layers.0.mlp.down_proj", "s60-3000000"),
        "layer_drop_config.txt": ("blocks.1.attention", "drop"),
    }
    for name, (unit, label) in wanted.items():
        answer = shell("import", SAMPLES / name, "--output", tmp_path / f"{name}.yaml")
        assert answer.code == 0, answer.err
        assert read_profile(tmp_path / f"{name}.yaml").units[unit] == label


def test_an_imported_profile_is_evaluated_and_exported(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits = {
        path: int(label[1])
        for unit, label in finished.front["points"][0]["profile"].items()
        for path in unit.split(",")
    }
    (tmp_path / "found.txt").write_text("\n".join(f"{path}: {width}" for path, width in bits.items()))
    profile = tmp_path / "found.yaml"
    at(
        finished,
        monkeypatch,
        "import",
        tmp_path / "found.txt",
        "--output",
        profile,
        "--group",
        "16",
        "--symmetric",
    )
    answer = at(finished, monkeypatch, "evaluate", profile, "--run", "runs/tiny")
    assert answer.code == 0, answer.err
    wanted = finished.front["points"][0]["heldout_perplexity"]
    assert figures(answer.out)["perplexity"] == pytest.approx(wanted, rel=1e-7)
    answer = at(
        finished, monkeypatch, "export", "runs/tiny", "--profile", profile, "--output", tmp_path / "model"
    )
    assert answer.code == 0, answer.err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["search", "--help"], ["show", "runs/tiny"], ["status", "runs/tiny"]]
)
def test_looking_needs_no_torch(finished: Finished, arguments: list[str]) -> None:
    code = (
        "import sys; from paretopress import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules, file=sys.stderr)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=finished.folder,
        env=subprocess_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert process.stderr == "0 False\n"
    assert process.stdout
