"""GGUF files: what llama.cpp makes of them, and what is refused."""

import json
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from torch import Tensor
from transformers import AutoTokenizer

from paretopress.exporters import gguf
from paretopress.exporters.evaluate import evaluate_target
from paretopress.exporters.export import export_run
from paretopress.exporters.llama_cpp import FILE, opened
from paretopress.exporters.winner import Winner
from paretopress.search.configuration import load_config
from paretopress.search.measure import measure_model
from paretopress.spaces.checkpoint import Checkpoint
from paretopress.spaces.configuration import SpaceConfig
from paretopress.spaces.construction import space_of
from paretopress.spaces.ggml import GGML_TYPES
from tests.exporters.cases import QUICKSTART, Case, finished_run, half_model

pytestmark = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")

TYPES = (
    "q2_k",
    "q3_k",
    "q4_k",
    "q5_k",
    "q6_k",
    "iq3_s",
    "iq4_xs",
    "q4_0",
    "q4_1",
    "q5_0",
    "q5_1",
    "q8_0",
    "iq4_nl",
)
LEGACY = ("q4_0", "q5_1", "q8_0", "iq4_nl")
WIDE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES: dict[str, tuple[str, torch.dtype, dict[str, Any]]] = {
    "llama": ("llama", torch.bfloat16, {"tie_word_embeddings": False, "attention_bias": True}),
    "llama 3.1": ("llama", torch.float16, {"rope_parameters": STRETCHED}),
    "llama, linear": (
        "llama",
        torch.float16,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0}},
    ),
    "mistral": ("mistral", torch.bfloat16, {"sliding_window": None}),
    "qwen2": ("qwen2", torch.float16, {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", torch.bfloat16, {}),
}


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(QUICKSTART, tmp_path_factory.mktemp("levels"), LEGACY)


def export(case: Case, assignment: Mapping[str, str], output: Path, **known: Any) -> list[str]:
    winner = Winner(case.checkpoint, case.structure, case.database, assignment, **known)
    return gguf.export_gguf(winner, output, overwrite=False)


def log_probs(path: Path, tokens: Tensor) -> Tensor:
    with opened(path / FILE, tokens.shape[1]) as model:
        return model.logits(tokens[0].tolist()).log_softmax(-1)


def kl(meant: Tensor, found: Tensor) -> float:
    return float((meant.exp() * (meant - found)).sum(-1).mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_what_transformers_does(family: str, tmp_path: Path) -> None:
    name, dtype, changes = FAMILIES[family]
    case = Case(
        half_model(name, tmp_path / "model", dtype, **{**WIDE, **changes}), tmp_path / "levels", TYPES
    )
    assignment = case.assignment({1: ("attention", "mlp")})
    assignment[case.structure.ends.embedding.path] = "q6_k"
    lines = export(case, assignment, tmp_path / "out")
    tokens = torch.from_numpy(
        torch.randint(3, 128, (1, 60), generator=torch.Generator().manual_seed(1)).numpy()
    )
    with torch.inference_mode():
        meant = case.edited(assignment)(input_ids=tokens).logits[0].float().log_softmax(-1)
    found = log_probs(tmp_path / "out", tokens)
    assert kl(meant, found) < 0.01
    assert float((meant.exp() * meant).sum(-1).mean()) > -4.8, "the model says something of the tokens"
    assert "so for token ids alone: the tokenizer is no byte-level BPE" in lines[2]


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
    skeleton = quickstart.checkpoint.skeleton()
    space = space_of(quickstart.structure, chosen, skeleton, quickstart.checkpoint.dtype)
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


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "gpt_neox",
            {},
            r"models of type 'gpt_neox' are not written as GGUF; .*llama, mistral, qwen2, qwen3",
        ),
        (
            "mistral",
            {"sliding_window": 8},
            "runs mistral without the sliding window of 8 tokens; export with",
        ),
        ("llama", {"hidden_act": "gelu"}, "runs llama with silu, not gelu"),
    ],
)
def test_models_that_llama_cpp_would_run_otherwise_are_refused(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    case = Case(
        half_model(name, tmp_path / "model", torch.float16, **changes), tmp_path / "levels", ("q8_0",)
    )
    with pytest.raises(ValueError, match=message):
        export(case, {}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_llama_cpp_has_no_room_for_is_refused(quickstart: Case, tmp_path: Path) -> None:
    alone = quickstart.assignment({2: ("attention",)})
    with pytest.raises(
        ValueError, match=r"blocks.2.attention is dropped alone, .*; search with space.drop=blocks"
    ):
        export(quickstart, alone, tmp_path / "out")
    integers = Case(QUICKSTART, tmp_path / "levels", ("w4g128",))
    with pytest.raises(
        ValueError, match=r"down_proj takes 'w4g128', which is no type of llama.cpp; search over levels"
    ):
        export(integers, integers.assignment({}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_llama_cpp_computes_otherwise_does_not_appear(
    quickstart: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paretopress.exporters.gguf_file.row_order", lambda config, name: lambda rows: rows)
    with pytest.raises(
        OSError, match=r"computes something else than was searched: .* nats apart, 0.02 are allowed"
    ):
        export(quickstart, {}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_held_out_figures_are_those_of_the_profile(quickstart: Case, tmp_path: Path) -> None:
    config = load_config(
        QUICKSTART.parent / "quickstart.yaml", ["data.heldout.tokens=2048", "evaluation.threads=1"]
    )
    assignment = {linear.path: "q4_0" for linear in quickstart.structure.linears}
    export(quickstart, assignment, tmp_path / "out")
    quickstart.export(assignment, tmp_path / "dense")
    figures, scores = evaluate_target(config, tmp_path / "out", tmp_path, "heldout")
    meant = measure_model(config, Checkpoint(tmp_path / "dense"), "heldout")
    assert scores == []
    assert figures["kl"] == pytest.approx(meant["kl"], rel=0.03)
    assert figures["perplexity"] == pytest.approx(meant["perplexity"], rel=0.003)
    assert figures != meant
    with pytest.raises(ValueError, match="is run by llama.cpp, which takes no tasks here"):
        evaluate_target(config, tmp_path / "out" / FILE, tmp_path, "heldout", ["arc_easy"])


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
    assert "token ids alone" in lines[2]
