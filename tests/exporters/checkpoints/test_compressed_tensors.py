"""Packed exports: what `transformers` makes of them, bit for bit, and what is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from paretopress.exporters.artifact.compression import Compression
from paretopress.exporters.artifact.remains import Remains
from paretopress.exporters.artifact.winner import Winner
from paretopress.exporters.checkpoints import model_folder
from paretopress.exporters.checkpoints.compressed_tensors import PackedLayout, serving_notes
from paretopress.exporters.checkpoints.model_folder import WrittenModel, write_model
from paretopress.exporters.checkpoints.packed_checkpoint import open_model
from paretopress.search.jobs.measure import measure_model
from paretopress.spaces.levels.builders import build
from paretopress.spaces.levels.labels import parse_label
from paretopress.spaces.levels.sizes import compressed_tensors
from paretopress.spaces.model.checkpoint import Checkpoint
from paretopress.spaces.model.dense_model import DenseModel
from paretopress.spaces.storage.database import LevelDatabase
from tests.architectures import core_first, save_model
from tests.exporters.cases import (
    QUICKSTART,
    ROUNDED,
    Case,
    half_model,
    load,
    logits,
    quickstart_config,
    reloaded,
)

MIXED = ("w2g32", "w3g64", "w4g128", "w8", "w5g32", "s50", "2:4+w4g32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cases")


@pytest.fixture(scope="module")
def llama(folder: Path) -> Case:
    path = half_model("llama", folder / "llama", torch.bfloat16, tie_word_embeddings=False)
    return Case(path, folder / "levels", (*MIXED, "w4g128a", "w3g48", "w4"))


@pytest.fixture(scope="module")
def qwen2(folder: Path) -> Case:
    path = half_model("qwen2", folder / "qwen2", torch.float16, tie_word_embeddings=True)
    return Case(path, folder / "levels", MIXED)


@pytest.fixture(scope="module")
def quickstart(folder: Path) -> Case:
    return Case(QUICKSTART, folder / "levels", MIXED)


def mixed(case: Case, dropped: Mapping[int, tuple[str, ...]] | None = None) -> dict[str, str]:
    found = case.assignment(dropped or {})
    return {path: label for path, label in found.items() if label == "drop" or label in MIXED}


def winner_of(case: Case, assignment: Mapping[str, str], **known: Any) -> Winner:
    return Winner(DenseModel(case.checkpoint, case.structure), case.database, assignment, **known)


def export(case: Case, assignment: Mapping[str, str], output: Path, **options: Any) -> WrittenModel:
    layout = PackedLayout(case.checkpoint.dtype)
    return write_model(winner_of(case, assignment), layout, output, device="cpu", **options)


def unpacked(path: Path) -> PreTrainedModel:
    """The model as the library decompresses it, which it does before the first forward."""
    pytest.importorskip("compressed_tensors")
    model = reloaded(path)
    logits(model)
    return model


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if name.endswith("weight")}


@pytest.mark.parametrize("name", core_first(["llama", "qwen2", "quickstart"], ("llama", "qwen2")))
def test_every_weight_and_logit_is_that_of_the_dense_export(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    case: Case = request.getfixturevalue(name)
    assignment = mixed(case, {1: ("attention", "mlp"), 2: ("attention",)})
    assert {parse_label(v).grid is None for v in assignment.values() if v != "drop"} == {True, False}
    written = export(case, assignment, tmp_path / "packed")
    case.export(assignment, tmp_path / "dense")
    found, expected = unpacked(tmp_path / "packed"), load(tmp_path / "dense")
    assert written.removed == (1,)
    assert written.zeroed == ("blocks.2.attention",)
    assert found.dtype == expected.dtype == case.checkpoint.dtype
    assert weights(found).keys() == weights(expected).keys()
    for tensor, weight in weights(expected).items():
        assert torch.equal(weights(found)[tensor], weight), tensor
    assert torch.equal(logits(found), logits(expected))
    assert not torch.equal(logits(found), logits(load(case.path)))


@pytest.mark.parametrize(
    "name", core_first(["gemma2", "gemma3_text", "gpt_neo", "gpt_neox", "mistral", "opt", "phi3", "qwen3"])
)
def test_other_architectures_load_as_their_dense_exports(name: str, tmp_path: Path) -> None:
    case = Case(halved(save_model(name, tmp_path / name)), tmp_path / "levels", ("w3g16", "w4", "w8g8"))
    last = len(case.structure.blocks) - 1
    assignment = case.assignment({0: ("attention",), 1: ("attention", "mlp"), last: ("mlp",)})
    export(case, assignment, tmp_path / "packed")
    case.export(assignment, tmp_path / "dense")
    found, expected = unpacked(tmp_path / "packed"), load(tmp_path / "dense")
    assert all(torch.equal(weights(found)[key], weight) for key, weight in weights(expected).items())
    assert torch.equal(logits(found), logits(expected))


@pytest.mark.parametrize("tied", [True, False])
def test_names_without_the_prefix_are_kept_and_load(tied: bool, tmp_path: Path) -> None:
    path = half_model("llama", tmp_path / "llama", torch.bfloat16, tie_word_embeddings=tied)
    stored = load_file(path / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in stored.items()}
    save_file(bare, path / "model.safetensors", {"format": "pt"})
    case = Case(path, tmp_path / "levels", ("w2g32", "w3g64"))
    assignment = case.assignment({1: ("attention", "mlp")})
    export(case, assignment, tmp_path / "out")
    assert "layers.0.self_attn.q_proj.weight_packed" in load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(logits(unpacked(tmp_path / "out")), logits(case.edited(assignment)))


def halved(path: Path) -> Path:
    """A saved model, stored in bfloat16 instead."""
    stored = {name: tensor.bfloat16() for name, tensor in load_file(path / "model.safetensors").items()}
    save_file(stored, path / "model.safetensors", {"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    return path


def test_stored_integers_and_scales_are_those_of_the_levels(llama: Case, tmp_path: Path) -> None:
    export(llama, mixed(llama), tmp_path / "out")
    path = llama.structure.linears[1].path
    level = llama.database.load(path, "w3g64", torch.device("cpu"))
    written = load_file(tmp_path / "out" / "model.safetensors")
    # Rows of whole words: the level's bytes are the file's.
    assert torch.equal(written[f"{path}.weight_packed"].view(torch.uint8).flatten(), level.tensors["codes"])
    assert torch.equal(written[f"{path}.weight_scale"], level.tensors["scales"])
    assert written[f"{path}.weight_shape"].tolist() == [64, 128]
    assert f"{path}.weight" not in written


def test_a_head_of_its_own_is_packed_and_rows_need_not_fill_words(tmp_path: Path) -> None:
    path = half_model(
        "llama", tmp_path / "odd", torch.bfloat16, intermediate_size=52, tie_word_embeddings=False
    )
    case = Case(path, tmp_path / "levels", ("w3", "w5g4", "w4g128", "w7g26"))
    linears = case.structure.linears
    down = [linear.path for linear in linears if linear.in_features == 52]
    assignment = {linear.path: "w3" for linear in linears} | {"lm_head": "w3"}
    assignment |= dict(zip(down, ("w5g4", "w4g128", "w7g26"), strict=True))
    written = export(case, assignment, tmp_path / "out")
    found = weights(unpacked(tmp_path / "out"))
    for name, label in assignment.items():
        assert torch.equal(
            found[f"{name}.weight"], case.database.load(name, label, torch.device("cpu")).dense()
        )
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["ignore"] == []
    # A group of 128 covers a row of 52, which is what a channel's scale does.
    assert config["config_groups"]["w4"]["targets"] == [down[1]]
    assert config["config_groups"]["w4"]["weights"]["strategy"] == "channel"
    assert written.tensor_bytes == ruled_bytes(case, assignment)
    notes = "\n".join(serving_notes(winner_of(case, assignment)))
    assert "the head is packed too" in notes
    assert "dequantize=True)` of transformers 5.23 and 5.24 gives wrong" in notes
    same = dict.fromkeys(assignment, "w3")
    assert "dequantize" not in "\n".join(serving_notes(winner_of(case, same)))


def ruled_bytes(case: Case, assignment: Mapping[str, str]) -> int:
    """Bytes of the model by the size rules of byte budgets, without any export."""
    linears = {n.path: n for n in (*case.structure.linears, *case.structure.ends.linears)}
    total = 2 * sum(parameter.numel() for parameter in case.checkpoint.skeleton().parameters())
    for path, label in assignment.items():
        shape = (linears[path].out_features, linears[path].in_features)
        total += compressed_tensors(parse_label(label), shape, 16) - 2 * shape[0] * shape[1]
    return total


def test_files_have_the_size_that_byte_budgets_count(llama: Case, tmp_path: Path) -> None:
    assignment = mixed(llama)
    written = export(llama, assignment, tmp_path / "out", shard_bytes=50_000)
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert written.tensor_bytes == ruled_bytes(llama, assignment)
    assert written.bytes == sum(file.stat().st_size for file in files)
    tensors = 0
    for path in files:
        with safe_open(path, framework="pt") as file:
            found = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - not a mapping
            tensors += sum(tensor.numel() * tensor.element_size() for tensor in found)
    assert tensors == written.tensor_bytes
    assert torch.equal(logits(unpacked(tmp_path / "out")), logits(llama.edited(assignment)))


def test_configuration_is_the_librarys(llama: Case, tmp_path: Path) -> None:
    quantization = pytest.importorskip("compressed_tensors.quantization")
    assignment = mixed(llama)
    export(llama, assignment, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    parsed = quantization.QuantizationConfig.model_validate(config["quantization_config"])
    assert parsed.quantization_status == "compressed"
    for path, label in assignment.items():
        grid = parse_label(label).grid
        groups = [g for g in parsed.config_groups.values() if path in g.targets]
        assert (path in parsed.ignore) == (grid is None)
        assert len(groups) == (grid is not None)
        for group in groups:
            assert grid is not None
            assert (group.weights.num_bits, group.weights.group_size) == (grid.bits, grid.group)
            assert group.weights.symmetric
    record = json.loads((tmp_path / "out" / "paretopress.json").read_text())
    assert record["format"] == "compressed-tensors"
    assert record["needs"] == {"compressed-tensors": ">=0.19.0"}
    assert "pack-quantized" in (tmp_path / "out" / "README.md").read_text()


def test_the_type_that_makes_weights_exact_is_written(tmp_path: Path) -> None:
    path = half_model("llama", tmp_path / "llama", torch.bfloat16)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"dtype": "float32", "torch_dtype": "float32"}))
    case = Case(path, tmp_path / "levels", ("w3g64",))
    assignment = {case.structure.linears[0].path: "w3g64"}
    export(case, assignment, tmp_path / "out")
    model = unpacked(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert torch.equal(
        weights(model)[f"{case.structure.linears[0].path}.weight"],
        case.database.load(case.structure.linears[0].path, "w3g64", torch.device("cpu")).dense(),
    )


def test_levels_that_the_format_cannot_hold_are_refused(llama: Case, qwen2: Case, tmp_path: Path) -> None:
    first = llama.structure.linears[0].path
    cases: list[tuple[Case, dict[str, str], str]] = [
        (llama, {first: "w4g128a"}, rf"{first} takes 'w4g128a', .* without zero points; search .* 'w4g128'"),
        (llama, {first: "w3g48"}, r"takes 'w3g48', .* 128 inputs are no multiple of 48; choose a divisor"),
        (llama, {"model.embed_tokens": "w8"}, r"model.embed_tokens takes 'w8', .* no quantised embeddings"),
        (qwen2, {"lm_head": "w8"}, r"takes 'w8', .* no quantised embeddings; pin it to `dense`"),
        (
            llama,
            {first: "s50"},
            "no layer has an integer level, so there is nothing to pack; use --format hf",
        ),
    ]
    for case, assignment, message in cases:
        with pytest.raises(ValueError, match=message):
            export(case, assignment, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_models_that_the_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    case = Case(halved(save_model("gpt2", tmp_path / "gpt2")), tmp_path / "levels", ("w4g16",))
    with pytest.raises(ValueError, match=r"transformer.h.0.attn.c_attn takes 'w4g16', .* not a Conv1D"):
        export(case, {"transformer.h.0.attn.c_attn": "w4g16"}, tmp_path / "out")
    wide = Case(save_model("llama", tmp_path / "wide"), tmp_path / "levels", ("w4g16",))
    with pytest.raises(ValueError, match=r"stored in torch.float32, .* copy of it in bfloat16 or float16"):
        export(wide, {wide.structure.linears[0].path: "w4g16"}, tmp_path / "out")


def test_levels_of_another_model_are_refused(llama: Case, tmp_path: Path) -> None:
    first = llama.structure.linears[0].path
    database = LevelDatabase(tmp_path / "levels", {"model": "other"})
    database.write("all", {first: build(torch.randn(4, 16), None, ["w3g16"], config=ROUNDED)}, {first: {}})
    winner = Winner(DenseModel(llama.checkpoint, llama.structure), database, {first: "w3g16"})
    with pytest.raises(
        ValueError, match=r"has shape \(4, 16\), but the layer has \(128, 128\); use the level"
    ):
        write_model(winner, PackedLayout(torch.bfloat16), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["levels"]


def test_a_layer_of_another_type_than_its_model_is_refused(llama: Case, tmp_path: Path) -> None:
    stored = load_file(llama.path / "model.safetensors")
    first = llama.structure.linears[0].path
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "config.json").write_bytes((llama.path / "config.json").read_bytes())
    save_file(
        stored | {f"{first}.weight": stored[f"{first}.weight"].half()},
        copy / "model.safetensors",
        {"format": "pt"},
    )
    case = Case(copy, tmp_path / "levels", ("w4g128",))
    with pytest.raises(ValueError, match=rf"{first} is stored as F16 in a model of torch.bfloat16; pin it"):
        export(case, {first: "w4g128"}, tmp_path / "out")


class Damaging(PackedLayout):
    """Changes one bit of one scale between writing and reading back."""

    def open(self, folder: Path, trust_remote_code: bool) -> DenseModel:
        stored = load_file(folder / "model.safetensors")
        scale = next(tensor for name, tensor in stored.items() if name.endswith("weight_scale"))
        scale.view(torch.int16)[-1, -1] ^= 1
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
        return super().open(folder, trust_remote_code)


class Regrouping(PackedLayout):
    """Says another number of bits than it packs."""

    def configure(self, config: dict[str, Any], compression: Compression, left: Remains) -> dict[str, Any]:
        found = super().configure(config, compression, left)
        weights = found["quantization_config"]["config_groups"]["w4g128"]["weights"]
        weights["num_bits"] = 8
        return found


def test_files_that_read_differently_are_found_and_nothing_is_left(
    llama: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    winner = winner_of(llama, {llama.structure.linears[2].path: "w4g128"})
    for layout in (Damaging(torch.bfloat16), Regrouping(torch.bfloat16)):
        with pytest.raises(
            OSError, match=r"v_proj.weight in .* differs from level 'w4g128' of model.*; check the disk"
        ):
            write_model(winner, layout, tmp_path / "out")
    monkeypatch.setattr(model_folder, "check_rule", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_model(winner, PackedLayout(torch.bfloat16), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_packed_model_is_evaluated_as_its_dense_export(quickstart: Case, tmp_path: Path) -> None:
    assignment = mixed(quickstart)
    export(quickstart, assignment, tmp_path / "packed")
    quickstart.export(assignment, tmp_path / "dense")
    config = quickstart_config(length=64, heldout=128)
    packed, dense = (
        measure_model(config, DenseModel(open_model(tmp_path / name, False)), "heldout")
        for name in ("packed", "dense")
    )
    assert packed == dense
    assert packed["kl"] > 0.01
    with pytest.raises(ValueError, match="already quantised"):
        Checkpoint(tmp_path / "packed")
