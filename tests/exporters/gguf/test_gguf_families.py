"""GGUF files of every family: llama.cpp beside `transformers`, and models that are refused."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

from paretopress.exporters.gguf import gguf
from paretopress.exporters.gguf.llama_cpp import FILE, LlamaCpp
from paretopress.spaces.configuration import SpaceConfig
from paretopress.spaces.construction import space_of
from tests.exporters.cases import Case, half_model
from tests.exporters.gguf.gguf_cases import (
    DYNAMIC,
    EXACT,
    FAMILIES,
    LEGACY,
    SOFT,
    STRETCHED,
    STRETCHED_LOCAL,
    TYPES,
    WIDE,
    divergence,
    export,
    kl,
    log_probs,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"),
]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name.startswith(("g", "phi3"))])
def test_in_16_bits_llama_cpp_is_exact(family: str, tmp_path: Path) -> None:
    name, _, changes = FAMILIES[family]
    path = half_model(name, tmp_path / "model", torch.float16, **{**WIDE, **changes})
    case = Case(path, tmp_path / "levels", ("q8_0",))
    export(case, {}, tmp_path / "out")
    assert divergence(case, {}, tmp_path / "out") < EXACT


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_what_transformers_does(family: str, tmp_path: Path) -> None:
    name, dtype, changes = FAMILIES[family]
    case = Case(
        half_model(name, tmp_path / "model", dtype, **{**WIDE, **changes}), tmp_path / "levels", TYPES
    )
    assignment = case.assignment({1: ("attention", "mlp")})
    assignment[case.structure.ends.embedding.path] = "q6_k"
    del assignment[case.structure.linears[0].path]
    lines = export(case, assignment, tmp_path / "out")
    tokens = torch.from_numpy(
        torch.randint(3, 128, (1, 60), generator=torch.Generator().manual_seed(1)).numpy()
    )
    with torch.inference_mode():
        meant = case.edited(assignment)(input_ids=tokens).logits[0].float().log_softmax(-1)
    found = log_probs(tmp_path / "out", tokens)
    assert kl(meant, found) < 0.01
    assert 0.1 < -float((meant.exp() * meant).sum(-1).mean()) < 4.8, "the model says something of the tokens"
    assert "so it takes only token ids: the tokenizer is no byte-level BPE" in lines[2]


@pytest.mark.parametrize(
    ("name", "said", "meant", "mask"),
    [
        ("gpt2", "", "transformer.", "h.0.attn.bias"),
        ("gpt_neox", "gpt_neox.", "gpt_neox.", "gpt_neox.layers.0.attention.bias"),
        ("gpt_neox", "", "gpt_neox.", "layers.0.attention.masked_bias"),
        ("phi3", "", "model.", "layers.0.self_attn.rotary_emb.inv_freq"),
        ("qwen2", "lm_head.", "model.embed_tokens.", "model.layers.0.self_attn.rotary_emb.inv_freq"),
    ],
)
def test_files_may_name_tensors_otherwise_than_the_model(
    name: str, said: str, meant: str, mask: str, tmp_path: Path
) -> None:
    """GPT-NeoX's head is so named; files lack a prefix, hold masks, or have a tied tensor by its other name."""
    changes = {"tie_word_embeddings": True} if name == "qwen2" else {}
    path = half_model(name, tmp_path / name, torch.float16, **changes)
    weights = load_file(path / "model.safetensors")
    weights = {
        said + key.removeprefix(meant) if key.startswith(meant) else key: w for key, w in weights.items()
    }
    weights[mask] = torch.ones(1, 1, 64, 64, dtype=torch.float16)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    case = Case(path, tmp_path / "levels", ("q8_0",))
    ends = case.structure.ends
    end = ends.embedding if ends.tied else ends.head
    assignment = case.assignment({}) | {end.path: "q8_0"}
    export(case, assignment, tmp_path / "out")
    types = {x.name: x.tensor_type.name for x in GGUFReader(tmp_path / "out" / FILE).tensors}
    assert types["token_embd.weight" if ends.tied else "output.weight"] == "Q8_0"


def test_a_file_that_llama_cpp_does_not_load_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(
        ValueError, match=r"llama.cpp \(llama-cpp-python \S+\) does not load model.gguf; check"
    ):
        LlamaCpp(tmp_path / FILE, 8)


@pytest.mark.parametrize("name", ["gemma3_text", "gpt2", "gpt_neox", "phi3"])
def test_bytes_of_other_families_are_those_of_the_search(name: str, tmp_path: Path) -> None:
    path = half_model(name, tmp_path / "model", torch.bfloat16, **(SOFT if name.startswith("gemma") else {}))
    case = Case(path, tmp_path / "levels", LEGACY)
    space = space_of(case.model, SpaceConfig(levels=LEGACY, format="gguf"))
    profile = space.uniform({})
    labels = {linear.path: space.describe(profile)[linear.path] for linear in case.structure.linears}
    export(case, labels, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "paretopress.json").read_text())
    assert record["tensor_bytes"] == space.cost(profile, "bytes")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("opt", {"ffn_dim": 128}, "models of type 'opt' are not written as GGUF; .*known: gemma, gemma2,"),
        (
            "gpt_neo",
            {"attention_types": [[["global"], 3]]},
            "models of type 'gpt_neo' are not written as GGUF; did you mean 'gpt_neox'?",
        ),
        (
            "mistral",
            {"sliding_window": 8},
            "runs mistral without the sliding window of 8 tokens; export with",
        ),
        ("phi3", {"sliding_window": 8}, "runs phi3 without the sliding window of 8 tokens"),
        ("llama", {"hidden_act": "gelu"}, "runs llama with silu, not gelu; export with --format hf"),
        ("gpt2", {"activation_function": "relu"}, "runs gpt2 with gelu_new, not relu"),
        (
            "gpt2",
            {"scale_attn_by_inverse_layer_idx": True},
            "runs gpt2 with attention scaled only by the size of",
        ),
        ("gpt_neox", {"tie_word_embeddings": True}, "runs gpt_neox with a head that is not tied"),
        ("gpt_neox", {"attention_bias": False}, "runs gpt_neox with biases in attention"),
        ("gemma2", {"head_dim": 32, "query_pre_attn_scalar": 24}, "with query_pre_attn_scalar 32, not 24"),
        ("gemma2", SOFT | {"final_logit_softcapping": None}, "with final_logit_softcapping, which is off"),
        (
            "gemma3_text",
            SOFT | {"attn_logit_softcapping": 5.0},
            "runs gemma3_text without attn_logit_softcap",
        ),
        ("gemma3_text", SOFT | {"use_bidirectional_attention": True}, "with causal attention only"),
        ("gemma3_text", SOFT | {"rope_parameters": STRETCHED_LOCAL}, "without the rotary type 'linear'"),
        ("qwen2", {"rope_parameters": DYNAMIC}, "without the rotary type 'dynamic'"),
        ("qwen2", {"rope_parameters": STRETCHED}, "without the rotary type 'llama3'"),
        ("qwen3", SOFT | {"rope_parameters": STRETCHED}, "without the rotary type 'llama3'"),
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


@pytest.mark.parametrize(
    ("family", "dropped"),
    [
        ("llama", {0: ("attention",), 1: ("mlp",), 2: ("attention",)}),
        ("llama 3.1", {0: ("mlp",), 2: ("mlp",)}),
        ("llama 3.1", {0: ("attention", "mlp"), 1: ("attention",)}),
        ("mistral", {1: ("attention",)}),
        ("qwen2", {0: ("attention",), 1: ("attention",), 2: ("mlp",)}),
    ],
)
def test_branches_are_dropped_alone(family: str, dropped: dict[int, tuple[str, ...]], tmp_path: Path) -> None:
    name, _, changes = FAMILIES[family]
    path = half_model(name, tmp_path / "model", torch.float16, **{**WIDE, **changes})
    case = Case(path, tmp_path / "levels", TYPES)
    mixed = case.assignment(dropped)
    export(case, mixed, tmp_path / "out")
    assert divergence(case, mixed, tmp_path / "out") < gguf.DIVERGENCE
    dense = {path: label for path, label in mixed.items() if label == "drop"}
    export(case, dense, tmp_path / "dense")
    assert divergence(case, dense, tmp_path / "dense") < EXACT
    assert divergence(case, {}, tmp_path / "dense") > 0.1, "the branches are of some consequence"
    record = json.loads((tmp_path / "out" / "paretopress.json").read_text())
    alone = [f"blocks.{index}.{kinds[0]}" for index, kinds in dropped.items() if len(kinds) == 1]
    assert record["absent_branches"] == alone
    assert f"{len(alone)} are left out" in (tmp_path / "out" / "README.md").read_text()
