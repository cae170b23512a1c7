"""Parts are written in order, announced once they are there, and failures surface."""

from pathlib import Path

import pytest
import torch

from paretopress.evaluators.levels.writing import Writer
from paretopress.spaces.levels.builders import BuilderConfig, build
from paretopress.spaces.levels.packed import Packed
from paretopress.spaces.storage.database import LevelDatabase


def levels() -> dict[str, dict[str, Packed]]:
    config = BuilderConfig(quantizer="rtn", pruner="magnitude")
    return {"layer": build(torch.ones(4, 8).half(), None, ["w4"], config=config)}


def write_and_leave(
    database: LevelDatabase, announced: list[str], why: type[BaseException] | None = None
) -> None:
    with Writer(database, announced.append) as writer:
        writer.write("block-000", levels(), {"layer": {"w4": 0.5}})
        if why is not None:
            raise why


def test_parts_are_announced_in_order_when_they_are_written(tmp_path: Path) -> None:
    database = LevelDatabase(tmp_path, {})
    announced: list[tuple[str, bool]] = []
    with Writer(database, lambda part: announced.append((part, database.has(part)))) as writer:
        for number in range(4):
            writer.write(f"block-{number:03d}", levels(), {f"layer {number}": {"w4": 0.5}})
            assert len(announced) == number
    assert announced == [(f"block-{number:03d}", True) for number in range(4)]
    assert len(LevelDatabase(tmp_path, {}).errors()) == 4


def test_a_failure_is_raised_by_whoever_comes_next(tmp_path: Path) -> None:
    (tmp_path / "block-000.safetensors").mkdir()
    announced: list[str] = []
    database = LevelDatabase(tmp_path, {})
    with Writer(database, announced.append) as writer:
        writer.write("block-000", levels(), {})
        with pytest.raises(IsADirectoryError):
            writer.write("block-001", levels(), {})
    with pytest.raises(IsADirectoryError):
        write_and_leave(database, announced)
    assert not announced
    assert not database.has("block-000")
    assert not list(tmp_path.glob("*.json.*"))
    assert not list(tmp_path.glob(".*"))


def test_leaving_for_another_reason_finishes_the_part_in_hand(tmp_path: Path) -> None:
    database = LevelDatabase(tmp_path, {})
    with pytest.raises(KeyboardInterrupt):
        write_and_leave(database, [], KeyboardInterrupt)
    assert LevelDatabase(tmp_path, {}).has("block-000")
