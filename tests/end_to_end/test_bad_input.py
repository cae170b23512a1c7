"""Bad input ends with one line on the error stream and exit code 2, and writes nothing."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.end_to_end.conftest import Finished, Tiny, shell
from tests.end_to_end.test_main_job import snapshot
from tests.end_to_end.tiny import write_config

Edit = Callable[[dict[str, Any]], object]


def refused(folder: Path, *arguments: str | Path) -> str:
    """The one line that refuses a command, which must leave `folder` as it was."""
    before = snapshot(folder)
    answer = shell(*arguments)
    assert answer.code == 2, answer
    lines = answer.err.splitlines()
    assert len(lines) == 1
    assert "Traceback" not in answer.out
    assert snapshot(folder) == before
    return lines[0]


def put(path: str, value: object) -> Edit:
    """Set `path` in a configuration."""
    *parents, last = path.split(".")

    def edit(content: dict[str, Any]) -> None:
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value

    return edit


CONFIGURATIONS: dict[str, tuple[Edit, str]] = {
    "unknown key": (
        put("evaluation.thread", 1),
        "{config}: evaluation.thread: unknown key 'thread'; did you mean 'threads'? known: chunk, compile, ",
    ),
    "no model": (
        lambda content: content.pop("model"),
        "{config}: model is missing; give it in the configuration or with --set model=VALUE",
    ),
    "unknown level": (
        put("space.levels", ["w4g16", "w9g16"]),
        "level 'w9g16' is unknown; levels look like dense, ",
    ),
    "nothing to search": (put("space", {}), "there is nothing to search: give `space.levels`, "),
    "too small a budget": (
        put("budgets", [{"bits": 2.5}]),
        "budget 'bits 2.5' is below the cheapest profile; bits can be 3 to 7: raise the budget or add a cheaper level",
    ),
    "mixed budgets": (
        put("budgets", [{"bits": 4.0}, {"bytes": 30_000}]),
        "budgets begin with different costs (bits, bytes); begin all with the same cost",
    ),
    "a cost without drops": (put("budgets", [{"dropped": 2}]), ""),
    "two budgets in one name": (
        put("budgets", [{"bits": 4.0}, {"bits": 4}]),
        "{config}: budgets: budget 'bits 4' is given twice; ",
    ),
    "an unknown device": (put("evaluation.device", "gpu"), ""),
    "an empty micro-batch": (put("evaluation.micro_batch", 0), ""),
    "a micro-batch beyond the text": (
        put("evaluation.micro_batch", 64),
        "a micro-batch of 64 sequences is more than the 1024 calibration tokens; lower evaluation.micro_batch",
    ),
    "a chain through no level": (
        put("builder.chain", "w8g16"),
        "builder.chain 'w8g16' is not a level of model.layers.0.mlp.down_proj; add it to `space.levels`",
    ),
    "missing model folder": (
        put("model", "/nowhere/model"),
        "model '/nowhere/model' is not a directory; check the path",
    ),
    "missing text": (put("data.source", "none.txt"), "no file matches data source 'none.txt'; give a path, "),
    "too little text": (
        put("data.calibration.tokens", 10**7),
        "calibration needs 156250 sequences of 64 tokens, but its ",
    ),
    "unknown method": (put("search", [{"method": "evolve"}]), "{config}: search.0: "),
    "unreachable device": (put("evaluation.device", "cuda"), "device 'cuda' is not available here; "),
    "a name that is no name": (put("name", "../x"), "{config}: name: String should match pattern"),
}


@pytest.mark.parametrize("what", CONFIGURATIONS)
@pytest.mark.parametrize("command", [["search"], ["search", "--dry-run"], ["build"]], ids=" ".join)
def test_configurations_that_cannot_work(
    what: str, command: list[str], tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "unreachable device" and torch.cuda.is_available():
        pytest.skip("it is reachable here")
    monkeypatch.chdir(tmp_path)
    edit, message = CONFIGURATIONS[what]
    content = tiny.content()
    edit(content)
    config = write_config(tmp_path / "tiny.yaml", content)
    line = refused(tmp_path, *command, config)
    assert line.startswith(f"paretopress: {message.format(config=config)}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "is not YAML at line 1 column 9"),
        ("- model", "is not a YAML mapping; a configuration has keys such as `model` and `space`"),
        ("", "is not a YAML mapping"),
        ("model: \x00", "is not YAML at character 7"),
    ],
)
def test_files_that_are_no_configuration(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text(text)
    assert f"broken.yaml {message}" in refused(tmp_path, "search", "broken.yaml")


def test_no_text_at_all_as_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.yaml").write_bytes(b"\xff\xfe\x00")
    assert "model.yaml is not YAML at byte 0 (not UTF-8)" in refused(tmp_path, "search", "model.yaml")
    assert refused(tmp_path, "search", "none.yaml") == (
        "paretopress: no configuration at none.yaml; ready ones are in configs/"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set 'seed' has no value; write --set key=value"),
        ("seed=[", "--set 'seed=[': the value is not YAML; "),
        ("sed=1", "unknown key 'sed'; did you mean 'seed'?"),
        ("seed.x=1", "--set seed.x: 'seed' is a value, not a mapping"),
        ("seed=many", "seed: Input should be a valid integer"),
    ],
)
def test_overrides_that_cannot_work(
    override: str, message: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny.config(tmp_path, seed=0)
    assert message in refused(tmp_path, "search", config, "--set", override)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serch"], "No such command 'serch'"),
        (["search"], "Missing argument 'config'; see `paretopress search --help`"),
        (["search", "x.yaml", "--fast"], "No such option: --fast"),
        (["import", "x", "--output", "y", "--step", "many"], "Invalid value for '--step'"),
        (["import", "none.txt", "--output", "y.yaml"], "none.txt: No such file or directory"),
        (["evaluate", "none.yaml"], "there is no none.yaml; give a model folder or a profile file"),
        (
            ["evaluate", "tiny.yaml"],
            "tiny.yaml is not in a run folder; name the text and the levels with --run RUN or --config FILE",
        ),
        (["evaluate", "."], ". is not in a run folder; "),
        (["show", "runs/none"], "no run at runs/none; runs here: runs/tiny"),
        (["status", "runs/none"], "no run at runs/none; runs here: runs/tiny"),
        (["show", "tiny.yaml"], "no run at tiny.yaml; runs here: runs/tiny"),
        (["export", "runs/none", "--output", "x"], "no run at runs/none; runs here: runs/tiny"),
        (
            ["export", "runs/tiny", "--output", "x"],
            "give a budget of the run (bits 3.5, bits 4.5) or a profile file",
        ),
        (
            ["export", "runs/tiny", "--output", "x", "--budget", "bits 3.6"],
            "budget 'bits 3.6' is not one of this run's; did you mean 'bits 3.5'? known: bits 3.5, bits 4.5",
        ),
        (
            ["export", "runs/tiny", "--output", "full", "--budget", "3.5"],
            "full holds other files; choose a new or ",
        ),
        (
            ["export", "runs/tiny", "--output", "x", "--profile", "none.yaml"],
            "none.yaml: No such file or directory",
        ),
        (
            ["evaluate", "runs/tiny/profiles/bits-3.5.yaml", "--data", "text"],
            "data 'text' is unknown; it is one of ",
        ),
        (
            ["evaluate", "other.yaml", "--run", "runs/tiny"],
            "other.yaml has the unknown key 'modle'; did you mean ",
        ),
        (
            ["search", "tiny.yaml", "--run", "full/file"],
            "run folder full/file is a file; choose another name",
        ),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_commands_that_cannot_work(
    arguments: list[str], message: str, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(finished.folder, folder, symlinks=True)
    (folder / "full").mkdir()
    (folder / "full" / "file").touch()
    (folder / "other.yaml").write_text("format_version: 1\nmodle: x\nunits: {}\n")
    monkeypatch.chdir(folder)
    line = refused(folder, *arguments)
    assert line.startswith("paretopress: ")
    assert message in line


def test_a_run_without_a_front(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(finished.run, tmp_path / "runs" / "tiny")
    (tmp_path / "runs" / "tiny" / "front.json").unlink()
    monkeypatch.chdir(tmp_path)
    advice = "runs/tiny has no front yet; see its progress with `paretopress status runs/tiny`"
    assert advice in refused(tmp_path, "show", "runs/tiny")
    assert "runs/tiny has no front yet" in refused(
        tmp_path, "export", "runs/tiny", "--budget", "3.5", "--output", "x"
    )
    (tmp_path / "runs" / "tiny" / "checkpoint.json").write_text("{")
    assert "checkpoint.json is not JSON at line 1" in refused(tmp_path, "status", "runs/tiny")


def test_levels_that_are_not_built(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished.run, tmp_path / "runs" / "tiny")
    monkeypatch.chdir(tmp_path)
    line = refused(tmp_path, "evaluate", "runs/tiny/profiles/bits-3.5.yaml")
    assert "holds no levels of this configuration; build them with `paretopress build`" in line
    line = refused(tmp_path, "export", "runs/tiny", "--budget", "3.5", "--output", "model")
    assert "build the run's levels again with `paretopress build`" in line


def test_a_broken_model(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny.model, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path / "tiny.yaml", tiny.content() | {"model": "model"})
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    assert "the dense model's cross-entropy is nan in torch.float32" in refused(tmp_path, "search", config)
    weights["model.norm.weight"][:] = 100
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    assert "worse than guessing among " in refused(tmp_path, "search", config)
    (tmp_path / "model" / "tokenizer.json").unlink()
    assert "no tokenizer loads from model" in refused(tmp_path, "search", config)
    (tmp_path / "model" / "model.safetensors").unlink()
    assert "model has neither model.safetensors nor " in refused(tmp_path, "search", config)


def test_a_bug_is_not_hidden(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("paretopress.search.run.configuration.parse_config", lambda content, where: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        shell("search", tiny.config(tmp_path))
