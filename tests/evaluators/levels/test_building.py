"""Building the level database: Hessians of the right activations, resumed builds, EvoPress's chain."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from paretopress.evaluators.levels.building import CalibratedBuilderConfig, build_database
from paretopress.spaces.levels.builders import build
from paretopress.spaces.levels.layer_error import layer_error
from paretopress.spaces.model.checkpoint import Checkpoint
from paretopress.spaces.model.structure import find_structure
from paretopress.spaces.storage.database import LevelDatabase
from tests.architectures import random_tokens, save_model
from tests.evaluators.runner.test_runner import make_runner

CPU = torch.device("cpu")
LABELS = ("s50", "w3g16")


def tokens() -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = random_tokens(6).numpy()
    return found


def labels_of(model: Path, labels: tuple[str, ...] = LABELS) -> dict[str, tuple[str, ...]]:
    structure = find_structure(Checkpoint(model).skeleton())
    return {linear.path: labels for linear in structure.linears}


def build_all(model: Path, folder: Path, config: CalibratedBuilderConfig | None = None) -> LevelDatabase:
    labels = labels_of(model)
    database = LevelDatabase(folder, {"labels": labels})
    build_database(database, labels, make_runner(model), tokens(), config or CalibratedBuilderConfig())
    return database


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_hessians_are_those_of_the_plain_model(name: str, tmp_path: Path) -> None:
    model = save_model(name, tmp_path / name)
    database = build_all(model, tmp_path / "levels", CalibratedBuilderConfig(pruner="wanda"))
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    structure = find_structure(Checkpoint(model).skeleton())
    hessians: dict[str, torch.Tensor] = {}
    for linear in structure.linears:

        def keep(_: object, args: tuple[torch.Tensor, ...], path: str = linear.path) -> None:
            x = args[0].reshape(-1, args[0].shape[-1])
            hessians[path] = x.T @ x

        plain.get_submodule(linear.path).register_forward_pre_hook(keep)
    with torch.no_grad():
        plain(input_ids=torch.from_numpy(tokens()), use_cache=False)
    for linear in structure.linears:
        weight = linear.turn(plain.get_parameter(f"{linear.path}.weight").detach()).float()
        expected = build(
            weight, hessians[linear.path].float(), ("s50",), config=CalibratedBuilderConfig(pruner="wanda")
        )["s50"]
        found = database.load(linear.path, "s50", CPU)
        same = (found.dense() == expected.dense()).double().mean()
        assert same > 0.995
        error = layer_error(weight, found.dense(), hessians[linear.path].float())
        assert database.errors()[linear.path]["s50"] == pytest.approx(error, rel=1e-3)


def test_an_interrupted_build_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    model = save_model("llama", tmp_path / "llama")
    whole = build_all(model, tmp_path / "whole")
    labels = labels_of(model)

    def stop(part: str) -> None:
        if part == "block-001":
            raise KeyboardInterrupt

    half = LevelDatabase(tmp_path / "half", {"labels": labels})
    with pytest.raises(KeyboardInterrupt):
        build_database(half, labels, make_runner(model), tokens(), CalibratedBuilderConfig(), progress=stop)
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "half").glob("*.safetensors")}
    assert sorted(written) == ["block-000.safetensors", "block-001.safetensors"]
    resumed = build_all(model, tmp_path / "half")
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "half" / path.name).read_bytes()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "half").iterdir()}
    ran: list[str] = []
    labels_again = LevelDatabase(tmp_path / "half", {"labels": labels})
    build_database(
        labels_again, labels, make_runner(model), tokens(), CalibratedBuilderConfig(), progress=ran.append
    )
    assert not ran, "a complete database costs no forward pass"
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "half").iterdir()} == before
    for name, time in written.items():
        assert (tmp_path / "half" / name).stat().st_mtime_ns == time
    assert resumed.errors() == whole.errors()


@pytest.mark.parametrize("chain", [None, "w3g16"])
def test_a_part_that_cannot_be_written_is_not_recorded(chain: str | None, tmp_path: Path) -> None:
    model = save_model("llama", tmp_path / "llama")
    config = CalibratedBuilderConfig(chain=chain)
    whole = build_all(model, tmp_path / "whole", config)
    (tmp_path / "levels" / "block-001.safetensors").mkdir(parents=True)
    with pytest.raises(OSError, match=r"block-001\.safetensors"):
        build_all(model, tmp_path / "levels", config)
    (tmp_path / "levels" / "block-001.safetensors").rmdir()
    found = LevelDatabase(tmp_path / "levels", {"labels": labels_of(model)})
    assert found.has("block-000")
    assert not found.has("block-001")
    assert build_all(model, tmp_path / "levels", config).errors() == whole.errors()


def test_a_chain_calibrates_each_block_behind_its_level(tmp_path: Path) -> None:
    model = save_model("llama", tmp_path / "llama")
    chained = build_all(model, tmp_path / "chained", CalibratedBuilderConfig(chain="w3g16"))
    changed = tmp_path / "changed"
    save_model("llama", changed)
    weights = load_file(changed / "model.safetensors")
    structure = find_structure(Checkpoint(model).skeleton())
    for linear in structure.blocks[0].linears:
        dense = chained.load(linear.path, "w3g16", CPU).dense()
        weights[f"{linear.path}.weight"] = linear.turn(dense).float().contiguous()
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    behind = build_all(changed, tmp_path / "behind")
    plain = build_all(model, tmp_path / "plain")
    for linear in structure.blocks[1].linears:
        found = chained.load(linear.path, "w3g16", CPU).dense()
        assert torch.equal(found, behind.load(linear.path, "w3g16", CPU).dense())
        assert not torch.equal(found, plain.load(linear.path, "w3g16", CPU).dense())
