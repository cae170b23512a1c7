"""The benchmark on a GPU: every part runs on a tiny model, and the profiler sees kernels."""

from pathlib import Path

import pytest

from benchmarks.speed.population import main

pytestmark = pytest.mark.gpu
STAGES = ["--offspring", "8", "--survivors", "4", "1", "--tokens", "64", "512"]


def test_one_generation(tmp_path: Path) -> None:
    figures = main(["--folder", str(tmp_path), *STAGES, "--runs", "1"])
    assert figures["equality"]["equal"]
    assert 0 < figures["generation"]["device_peak_allocated"] <= figures["generation"]["device_peak_reserved"]
    for stage in figures["profile"]["kinds"]:
        assert 0 < stage["matrix products"] < stage["all"]
        assert stage["attention"] > 0
    assert {"blocks", "scores"} <= set(figures["profile"]["parts"][0])


def test_one_candidate_at_a_time(tmp_path: Path) -> None:
    figures = main(["--folder", str(tmp_path), *STAGES, "--runs", "1", "--only", "launches"])
    assert figures["launches"]["population"] < figures["launches"]["apart"][1]
