"""`paretopress export` on a finished run: which point, what is measured of it, and what happens when it is pushed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from paretopress.exporters.export import export_run
from paretopress.exporters.heldout import compare_figures
from paretopress.spaces.profile_file import read_profile
from tests.end_to_end.conftest import Answer, Finished, shell


def at(finished: Finished, monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> Answer:
    monkeypatch.chdir(finished.folder)
    return shell(*arguments)


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "paretopress.json").read_text())
    return found


def change_front(run: Path, **figures: float) -> None:
    """Give every point of a run other figures than it has."""
    front = json.loads((run / "front.json").read_text())
    for point in front["points"]:
        point |= figures
    (run / "front.json").write_text(json.dumps(front))


@pytest.fixture
def run(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished run with its level databases."""
    shutil.copytree(finished.folder / "runs", tmp_path / "runs", symlinks=True)
    return tmp_path / "runs" / "tiny"


def test_points_by_number_and_by_size(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = finished.front["points"]
    for options, point in (
        (("--point", "1"), small),
        (("--point", "2"), large),
        (("--size", str(large["bytes"] - 1)), small),
        (("--size", "1GB"), large),
    ):
        common = ("export", "runs/tiny", "--output", tmp_path / "out", "--overwrite", "--no-measure")
        answer = at(finished, monkeypatch, *common, *options)
        assert answer.code == 0, answer.err
        found = record(tmp_path / "out")
        assert (found["profile"]["budget"], found["profile"]["units"]) == (point["budget"], point["profile"])
        assert "heldout_measured" not in found
    answer = at(finished, monkeypatch, "export", "runs/tiny", "--output", tmp_path / "no", "--size", "9B")
    assert answer.code == 2
    assert f"the smallest, bits 3.5, takes {small['bytes']:,}" in answer.err


def test_what_was_written_is_measured_unless_told_otherwise(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = at(finished, monkeypatch, "export", "runs/tiny", "--point", "1", "--output", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert "measuring the written model on the held-out text; --no-measure skips this" in answer.err
    point, found = finished.front["points"][0], record(tmp_path / "out")["heldout_measured"]
    assert found["kl"] == pytest.approx(point["heldout_kl"], rel=1e-5)
    assert found["perplexity"] == pytest.approx(point["heldout_perplexity"], rel=1e-6)


@pytest.mark.parametrize("name", ["kl", "perplexity"])
def test_another_figure_than_the_front_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    change_front(run, **{f"heldout_{name}": 123.4})
    message = rf"the files have held-out {name} .*, the run has 123\.4, so nothing was exported; check that text, model, "
    with pytest.raises(OSError, match=message):
        export_run(run, tmp_path / "out", point=1, measure=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    export_run(run, tmp_path / "out", point=1)


def test_a_profile_that_the_run_has_not_measured_is_not_compared(run: Path, tmp_path: Path) -> None:
    units = read_profile(run / "profiles" / "bits-3.5.yaml").units
    text = (run / "profiles" / "bits-3.5.yaml").read_text()
    name, label = next(iter(units.items()))
    other = "w4g16" if label != "w4g16" else "w3g16"
    (tmp_path / "mine.yaml").write_text(text.replace(f"{name}: {label}", f"{name}: {other}"))
    said: list[str] = []
    export_run(run, tmp_path / "out", profile=tmp_path / "mine.yaml", measure=True, say=said.append)
    assert record(tmp_path / "out")["heldout_measured"] is None
    assert not said


def test_figures_may_differ_by_rounding_alone() -> None:
    known = {"kl": 0.2, "perplexity": 8.0}
    compare_figures({"kl": 0.2029, "perplexity": 8.02}, known)
    for found in ({"kl": 0.2031, "perplexity": 8.0}, {"kl": 0.2, "perplexity": 8.2}):
        with pytest.raises(OSError, match="the files have held-out"):
            compare_figures(found, known)
    with pytest.raises(OSError, match="held-out kl nan, the run has 0.2"):
        compare_figures({"kl": float("nan")}, {"kl": 0.2})


def test_a_profile_goes_to_evopress_and_back(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "text"
    answer = at(
        finished,
        monkeypatch,
        "export",
        "runs/tiny",
        "--point",
        "1",
        "--format",
        "evopress",
        "--output",
        output,
    )
    assert answer.code == 0, answer.err
    command = answer.out.splitlines()[-1].removeprefix("to read the file again: paretopress ").split()
    monkeypatch.chdir(tmp_path)
    assert shell(*command).code == 0
    units = finished.front["points"][0]["profile"]
    layers = {path: label for name, label in units.items() for path in name.split(",")}
    assert read_profile(tmp_path / "profile.yaml").units == layers


def test_pushing_without_a_login_leaves_the_folder(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    common = ("export", "runs/tiny", "--point", "1", "--no-measure", "--output")
    output = tmp_path / "out"
    answer = at(finished, monkeypatch, *common, output, "--push", "me/model")
    assert answer.code == 2
    assert "paretopress: not pushed, nobody is logged in" in answer.err
    assert f"push it later: hf upload me/model {output} . --private" in answer.err
    assert (output / "paretopress.json").exists()
    for options, message in (
        (("--push", "model"), "'model' is no repository of the Hub; write OWNER/NAME"),
        (("--public",), "--public is of no use without --push OWNER/NAME; omit it"),
    ):
        answer = at(finished, monkeypatch, *common, tmp_path / "none", *options)
        assert (answer.code, (tmp_path / "none").exists()) == (2, False)
        assert message in answer.err
