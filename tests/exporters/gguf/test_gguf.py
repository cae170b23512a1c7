"""GGUF files: what is in them, and what is refused."""

import json
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from transformers import AutoTokenizer

from paretopress.exporters.evaluate import evaluate_target
from paretopress.exporters.export import export_run
from paretopress.exporters.gguf.llama_cpp import FILE, opened
from paretopress.exporters.heldout import LLAMA_ABSOLUTE, LLAMA_RELATIVE, compare_figures, heldout_check
from paretopress.search.jobs.measure import measure_model
from paretopress.spaces.configuration import SpaceConfig
from paretopress.spaces.construction import space_of
from paretopress.spaces.levels.ggml.ggml_types import GGML_TYPES
from paretopress.spaces.model.dense_model import DenseModel
from tests.exporters.cases import QUICKSTART, Case, finished_run, half_model, quickstart_config
from tests.exporters.gguf.gguf_cases import LEGACY, export

pytestmark = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(QUICKSTART, tmp_path_factory.mktemp("levels"), LEGACY)


def test_every_tensor_has_its_type_and_its_bytes(quickstart: Case, tmp_path: Path) -> None:
    assignment = quickstart.assignment({2: ("attention", "mlp")})
    export(quickstart, assignment, tmp_path / "out")
    found = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "out" / FILE).tensors}
    record = json.loads((tmp_path / "out" / "paretopress.json").read_text())
    assert record["tensor_bytes"] == sum(int(tensor.n_bytes) for tensor in found.values())
    assert record["removed_blocks"] == [2]
    assert found["output_norm.weight"].tensor_type == GGMLQuantizationType.F32
    assert "output.weight" not in found
    parts = {"attn_v": "self_attn.v_proj", "ffn_down": "mlp.down_proj", "ffn_up": "mlp.up_proj"}
    for number, index in enumerate([0, 1, 3, 4, 5, 6, 7]):
        for short, part in parts.items():
            path = f"model.layers.{index}.{part}"
            label, tensor = assignment.get(path), found[f"blk.{number}.{short}.weight"]
            if label is None:
                assert tensor.tensor_type == GGMLQuantizationType.F16
                continue
            assert tensor.tensor_type.value == GGML_TYPES[label].number
            stored = quickstart.database.load(path, label, torch.device("cpu")).tensors["blocks"]
            assert torch.equal(torch.from_numpy(tensor.data.copy()), stored)


def test_text_is_split_as_the_model_was_trained(quickstart: Case, tmp_path: Path) -> None:
    lines = export(quickstart, {}, tmp_path / "out")
    assert not any("tokenizer" in line for line in lines)
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART)
    with opened(tmp_path / "out" / FILE, 16) as model:
        for text in (
            "def f(x):\n    return [i**2 for i in range(100)]",
            "  don't\t\tstop é中 12345\n\n\n  x",
            "a",
        ):
            assert model.tokenize(text) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_bytes_are_those_of_the_search_and_no_more_than_the_budget(quickstart: Case, tmp_path: Path) -> None:
    chosen = SpaceConfig(levels=LEGACY, format="gguf", drop="blocks")
    space = space_of(quickstart.model, chosen)
    profile = list(space.uniform({}))
    profile[space.units.index(next(unit for unit in space.units if unit.droppable))] = 0
    labels, size = space.describe(tuple(profile)), space.cost(tuple(profile), "bytes")
    for room, fits in ((0, True), (-1, False)):
        budget = f"bytes {size + room}"
        config = {"space": chosen.model_dump(mode="json"), "budgets": [{"bytes": size + room}]}
        run = finished_run(quickstart, tmp_path / str(fits), labels, [budget], config)
        output = tmp_path / f"out {fits}"
        if fits:
            export_run(run, output, budget=budget, form="gguf")
            assert json.loads((output / "paretopress.json").read_text())["tensor_bytes"] == size
        else:
            with pytest.raises(
                ValueError, match=f"the files hold {size:,} bytes of tensors, above the {size - 1:,}"
            ):
                export_run(run, output, budget=budget, form="gguf")
            assert not output.exists()


@pytest.mark.slow
def test_branches_of_zeros_count(quickstart: Case, tmp_path: Path) -> None:
    sizes = []
    for number, dropped in enumerate(({}, {2: ("attention",)}, {2: ("mlp",)})):
        export(quickstart, quickstart.assignment(dropped), tmp_path / str(number))
        sizes.append(json.loads((tmp_path / str(number) / "paretopress.json").read_text())["tensor_bytes"])
    whole = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(tmp_path / "0" / FILE).tensors}
    attention = sum(size for name, size in whole.items() if name.startswith("blk.2.attn"))
    mlp = sum(size for name, size in whole.items() if name.startswith("blk.2.ffn") and "norm" not in name)
    assert sizes[1] == sizes[0] - attention
    assert sizes[2] == sizes[0] - mlp + 3 * 32 * 128 * 2
    chosen = SpaceConfig(levels=LEGACY, format="gguf").model_dump(mode="json")
    labels = quickstart.assignment({2: ("mlp",)})
    units = {path: label for path, label in labels.items() if label != "drop"} | {"blocks.2.mlp": "drop"}
    run = finished_run(
        quickstart,
        tmp_path,
        units,
        [f"bytes {sizes[2] - 1}"],
        {"space": chosen, "budgets": [{"bytes": sizes[2] - 1}]},
    )
    with pytest.raises(ValueError, match=r"of the budget: blocks.2.mlp are dropped but written as zeros"):
        export_run(run, tmp_path / "out", budget=f"bytes {sizes[2] - 1}", form="gguf")


def test_what_llama_cpp_has_no_room_for_is_refused(quickstart: Case, tmp_path: Path) -> None:
    other = Case(half_model("qwen3", tmp_path / "model", torch.float16), tmp_path / "levels", LEGACY)
    with pytest.raises(
        ValueError,
        match=r"blocks.2.attention is dropped but its block is kept, .*; search with space.drop=blocks",
    ):
        export(other, other.assignment({2: ("attention",)}), tmp_path / "out")
    integers = Case(QUICKSTART, tmp_path / "levels", ("w4g128",))
    with pytest.raises(
        ValueError, match=r"down_proj takes 'w4g128', which is no type of llama.cpp; search over levels"
    ):
        export(integers, integers.assignment({}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_llama_cpp_computes_otherwise_does_not_appear(
    quickstart: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "paretopress.exporters.gguf.gguf_file.as_llama_cpp", lambda config, name: lambda rows: rows
    )
    with pytest.raises(
        OSError,
        match=r"computes another model than was searched: the KL is .* per token, above the allowed 0.02",
    ):
        export(quickstart, {}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_held_out_figures_are_those_of_the_profile(quickstart: Case, tmp_path: Path) -> None:
    config = quickstart_config(length=512, heldout=2048)
    assignment = {linear.path: "q4_0" for linear in quickstart.structure.linears}
    export(quickstart, assignment, tmp_path / "out")
    quickstart.export(assignment, tmp_path / "dense")
    figures, scores = evaluate_target(config, tmp_path / "out", tmp_path, "heldout")
    meant = measure_model(config, DenseModel.open(tmp_path / "dense"), "heldout")
    assert scores == []
    assert figures["kl"] == pytest.approx(meant["kl"], rel=0.03)
    assert figures["perplexity"] == pytest.approx(meant["perplexity"], rel=0.003)
    assert figures != meant
    with pytest.raises(ValueError, match="is run by llama.cpp, which takes no tasks here"):
        evaluate_target(config, tmp_path / "out" / FILE, tmp_path, "heldout", ["arc_easy"])


def test_held_out_figures_are_measured_before_a_file_appears(quickstart: Case, tmp_path: Path) -> None:
    config = quickstart_config(length=256, heldout=1024)
    assignment = {linear.path: "q4_0" for linear in quickstart.structure.linears}
    quickstart.export(assignment, tmp_path / "dense")
    known = measure_model(config, DenseModel.open(tmp_path / "dense"), "heldout")
    said: list[str] = []

    def inspect(figures: Mapping[str, float]) -> Any:
        return heldout_check(config, figures, said.append)

    export(quickstart, assignment, tmp_path / "out", inspect=inspect(known))
    record = json.loads((tmp_path / "out" / "paretopress.json").read_text())
    found = record["heldout_measured"]
    assert found != known
    compare_figures(found, known, LLAMA_RELATIVE, LLAMA_ABSOLUTE)
    assert said == ["measuring the written model on the held-out text; --no-measure skips this"]
    with pytest.raises(
        OSError, match=r"the files have held-out kl .*, the run has .*, so nothing was exported; check "
    ):
        export(quickstart, assignment, tmp_path / "other", inspect=inspect({"kl": known["kl"] + 0.05}))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("change", "lack"),
    [
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "has no name for how"),
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [{"type": "Digits"}, {"type": "ByteLevel", "add_prefix_space": False}],
                }
            },
            "has no name for how",
        ),
        ({"normalizer": {"type": "Lowercase"}}, "has no name for how"),
        ({"added_tokens": [{"id": 8192, "content": "<x>", "special": True}]}, "more tokens than the model"),
    ],
)
def test_tokenizers_that_llama_cpp_would_get_wrong_are_left_out(
    change: dict[str, Any], lack: str, tmp_path: Path
) -> None:
    shutil.copytree(QUICKSTART, tmp_path / "model")
    file = tmp_path / "model" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    case = Case(tmp_path / "model", tmp_path / "levels", ("q8_0",))
    lines = export(case, {}, tmp_path / "out")
    assert lack in lines[2]
    assert "only token ids" in lines[2]
