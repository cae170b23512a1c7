"""Latency tables: a layer's path before its shape, nothing guessed."""

import math
from pathlib import Path

import pytest

from paretopress.spaces.latency import nanoseconds, read_latency
from paretopress.spaces.model.structure import Linear

LAYER = Linear("h.0.q", 64, 128)


def test_a_path_goes_before_a_shape() -> None:
    table = {"128x64": {"w4": 2.0, "w8": 3.5}, "h.0.q": {"w4": 1.25}}
    assert nanoseconds(table, LAYER, "w4") == 1250
    assert nanoseconds(table, LAYER, "w8") == 3500


@pytest.mark.parametrize(
    "table", [{}, {"64x128": {"w4": 1.0}}, {"h.0.q": {"w8": 1.0}}, {"h.0.q": {"w4": math.nan}}]
)
def test_missing_figures_are_refused(table: dict[str, dict[str, float]]) -> None:
    with pytest.raises(ValueError, match=r"no 'w4' for h\.0\.q or 128x64; add it in microseconds"):
        nanoseconds(table, LAYER, "w4")


def test_files_are_yaml_tables(tmp_path: Path) -> None:
    path = tmp_path / "latency.yaml"
    path.write_text("128x64: {w4: 2}\n")
    assert nanoseconds(read_latency(path), LAYER, "w4") == 2000
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match=r"latency\.yaml is not a latency table"):
        read_latency(path)
