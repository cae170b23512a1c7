"""The level database: what is written comes back, what is damaged is noticed, what is complete is kept."""

import json
from pathlib import Path

import pytest
import torch

from paretopress.spaces.levels.builders import BuilderConfig, build
from paretopress.spaces.levels.packed import Packed
from paretopress.spaces.storage.database import LevelDatabase

CPU = torch.device("cpu")
LABELS = ("w2g128", "w3g128", "w4g128", "w5g128", "w6g128")
RECIPE = {"model": "m", "labels": {"layer": list(LABELS)}}


def levels(labels: tuple[str, ...] = LABELS, seed: int = 0) -> dict[str, dict[str, Packed]]:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(seed)).half()
    plain = BuilderConfig(quantizer="rtn", pruner="magnitude")
    return {"layer": build(weight, None, labels, config=plain)}


def filled(path: Path, labels: tuple[str, ...] = LABELS) -> LevelDatabase:
    database = LevelDatabase(path, RECIPE)
    database.write("block-000", levels(labels), {"layer": dict.fromkeys(labels, 0.5)})
    return database


def test_levels_come_back_bit_for_bit(tmp_path: Path) -> None:
    labels = (*LABELS, "w4g128a", "s60", "2:4", "2:4+w4g128")
    filled(tmp_path / "levels", labels)
    reopened = LevelDatabase(tmp_path / "levels", RECIPE)
    reopened.verify()
    for label, level in levels(labels)["layer"].items():
        found = reopened.load("layer", label, CPU)
        assert found.shape == level.shape
        assert torch.equal(found.dense(), level.dense())
    assert reopened.errors() == {"layer": dict.fromkeys(labels, 0.5)}
    assert reopened.has("block-000")
    assert not reopened.has("block-001")


def test_five_bit_widths_take_less_than_2_7_bytes_per_weight(tmp_path: Path) -> None:
    assert filled(tmp_path).bytes < 2.7 * 64 * 256


def test_nothing_is_written_before_the_first_part(tmp_path: Path) -> None:
    database = LevelDatabase(tmp_path / "levels", RECIPE)
    assert database.errors() == {}
    assert not (tmp_path / "levels").exists()


def test_a_part_without_its_record_is_built_again(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "block-000.safetensors.json").unlink()
    assert not LevelDatabase(tmp_path, RECIPE).has("block-000")


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    with pytest.raises(
        ValueError, match="holds levels that were built with another recipe; choose another folder"
    ):
        LevelDatabase(tmp_path, RECIPE | {"model": "other"})


def test_damage_is_noticed(tmp_path: Path) -> None:
    database = filled(tmp_path)
    file = tmp_path / "block-000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(
        ValueError, match="does not match its checksum; remove it and block-000.safetensors.json"
    ):
        database.verify()
    file.unlink()
    with pytest.raises(ValueError, match="does not match its checksum"):
        database.verify()


def test_unknown_layers_levels_and_versions_are_refused(tmp_path: Path) -> None:
    database = filled(tmp_path)
    with pytest.raises(ValueError, match="layer 'other' is not in the level database"):
        database.load("other", "w2g128", CPU)
    with pytest.raises(ValueError, match="level 'w8' of layer is not in"):
        database.load("layer", "w8", CPU)
    record = tmp_path / "block-000.safetensors.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"format_version": 99}))
    with pytest.raises(ValueError, match="has format_version 99"):
        LevelDatabase(tmp_path, RECIPE)


def test_levels_reach_a_machine_that_does_not_see_them(tmp_path: Path) -> None:
    here = filled(tmp_path / "here")
    there = LevelDatabase(tmp_path / "there", here.recipe)
    there.restore(here.dump())
    assert there.errors() == here.errors()
    assert there.dump() == here.dump() == LevelDatabase(there.path, here.recipe).dump()


def test_levels_of_another_recipe_or_with_other_places_are_not_written(tmp_path: Path) -> None:
    here = filled(tmp_path / "here")
    other = LevelDatabase(tmp_path / "other", {**here.recipe, "more": 1})
    with pytest.raises(ValueError, match=r"levels that were sent are not those of .*other; build them again"):
        other.restore(here.dump())
    same = LevelDatabase(tmp_path / "same", here.recipe)
    with pytest.raises(ValueError, match="levels that were sent are not those"):
        same.restore({**here.dump(), "../away": b""})
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_damage_on_the_way_is_noticed(tmp_path: Path) -> None:
    here = filled(tmp_path / "here")
    content = {name: data[:-1] if name.endswith("tensors") else data for name, data in here.dump().items()}
    with pytest.raises(ValueError, match="does not match its checksum"):
        LevelDatabase(tmp_path / "there", here.recipe).restore(content)
