"""The benchmark of how far a search follows validation text."""

import json
from pathlib import Path

import pytest

from benchmarks.methods.overfitting import HEADER, main
from tests.end_to_end.conftest import Tiny
from tests.end_to_end.tiny import LENGTH, evolution

pytestmark = pytest.mark.slow


def test_it_prints_every_look_of_every_archive(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny.config(tmp_path)
    settings = ["--config", str(config), "--model", str(tiny.model), "--budget", "bits=3.5,4.5"]
    search = f"search={json.dumps(evolution(6))}"
    sizes = [str(2 * LENGTH), str(8 * LENGTH)]
    main([*settings, "--archive", *sizes, "--output", str(tmp_path / "out"), "--set", search])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == HEADER.splitlines()
    wanted = []
    for size in sizes:
        front = json.loads((tmp_path / "out" / f"archive-{size}" / "front.json").read_text())
        assert front["stopped"] is None
        end = front["looks"][-1]["tokens"]
        assert front["looks"][0]["tokens"] < end
        heldout = {point["budget"]: f"{point['heldout_kl']:.4f}" for point in front["points"]}
        for look in front["looks"]:
            assert look["gap"] == look["validation_of_uniform"] - look["calibration_of_uniform"]
            last = heldout[look["budget"]] if look["tokens"] == end else ""
            wanted.append((f"{int(size):,}", look["budget"], f"{look['validation']:.4f}", last))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert [(row[0], row[2], row[4], row[8]) for row in cells] == wanted
