"""Small models of the families that llama.cpp has, and what it computes of their exports."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paretopress.exporters.artifact.winner import Winner
from paretopress.exporters.gguf import gguf
from paretopress.exporters.gguf.llama_cpp import FILE, opened
from paretopress.spaces.model.dense_model import DenseModel
from tests.architectures import random_tokens
from tests.exporters.cases import Case

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
EXACT = 2e-4
"""Nats, of layers in 16 bits: what llama.cpp rounds then was 5e-5 at most."""
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
LOCAL = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 20_000.0, "factor": 2.0},
}
STRETCHED_LOCAL = dict.fromkeys(LOCAL, LOCAL["full_attention"])
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
SOFT: dict[str, Any] = {"head_dim": 32, "query_pre_attn_scalar": 32}
_GEMMA: dict[str, Any] = {
    "sliding_window": 8,
    "query_pre_attn_scalar": 64,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
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
    "gemma": ("gemma", torch.bfloat16, {}),
    "gemma2": (
        "gemma2",
        torch.bfloat16,
        _GEMMA | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0},
    ),
    "gemma2, other windows": (
        "gemma2",
        torch.bfloat16,
        _GEMMA
        | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0}
        | {"layer_types": ["sliding_attention"] * 2 + ["full_attention"] * 2},
    ),
    "gemma3": (
        "gemma3_text",
        torch.bfloat16,
        _GEMMA | {"rope_parameters": LOCAL, "final_logit_softcapping": 8.0},
    ),
    "phi3": ("phi3", torch.bfloat16, {}),
    "gpt2": ("gpt2", torch.float16, {}),
    "gpt_neox": ("gpt_neox", torch.float16, {}),
    "gpt_neox, one after the other": ("gpt_neox", torch.float16, {"use_parallel_residual": False}),
}


def export(case: Case, assignment: Mapping[str, str], output: Path, **known: Any) -> list[str]:
    winner = Winner(DenseModel(case.checkpoint, case.structure), case.database, assignment, **known)
    return gguf.export_gguf(winner, output, overwrite=False)


def log_probs(path: Path, tokens: Tensor) -> Tensor:
    with opened(path / FILE, tokens.shape[1]) as model:
        return model.logits(tokens[0].tolist()).log_softmax(-1)


def kl(meant: Tensor, found: Tensor) -> float:
    return float((meant.exp() * (meant - found)).sum(-1).mean())


def divergence(case: Case, assignment: Mapping[str, str], output: Path) -> float:
    """From what `transformers` computes to what llama.cpp does."""
    tokens = random_tokens(1, 60)
    with torch.inference_mode():
        meant = case.edited(assignment)(input_ids=tokens).logits[0].float().log_softmax(-1)
    return kl(meant, log_probs(output, tokens))
