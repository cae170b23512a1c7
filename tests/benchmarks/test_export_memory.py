"""The benchmark of exports: its clock, its table, and that nothing stays behind."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks.exports.export_memory import LEVELS, main
from benchmarks.memory import measured

pytestmark = pytest.mark.slow

MEGABYTES = 200


def test_memory_is_that_of_the_action_at_its_peak() -> None:
    def action() -> None:
        torch.ones(MEGABYTES, 1_000_000, dtype=torch.uint8)
        torch.ones(MEGABYTES // 4, 1_000_000, dtype=torch.uint8)

    cost = measured(action)
    assert cost.seconds > 0
    assert 1000 * cost.anonymous == pytest.approx(MEGABYTES, rel=0.3)
    assert cost.resident >= 0.9 * cost.anonymous


def test_every_format_has_a_row_for_every_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    formats = [form for form in LEVELS if form != "gguf" or find_spec("llama_cpp")]
    folder = tmp_path / "exports"
    arguments = ["--folder", str(folder), "--shape", "tiny", "--blocks", "2", "3", "--formats", *formats]
    monkeypatch.setattr("sys.argv", ["export_memory", *arguments])
    main()
    table = capsys.readouterr().out.rpartition("---\n")[2].splitlines()
    cells = [line.split() for line in table]
    assert [(row[0], row[1]) for row in cells] == [(form, blocks) for form in formats for blocks in "23"]
    assert [row[-1] == "-" for row in cells] == [True, False] * len(formats)
    assert not folder.exists()
