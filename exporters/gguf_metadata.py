"""What llama.cpp must know of an architecture, and how its tensors differ from those of `transformers`."""

import math
from collections.abc import Callable
from typing import Any

import torch
from gguf import GGUFWriter, RopeScalingType
from torch import Tensor

from ..search.messages import nearest

_LLAMA = "llama"
ARCHITECTURES = {"llama": _LLAMA, "mistral": _LLAMA, "qwen2": "qwen2", "qwen3": "qwen3"}
"""`model_type` of transformers to llama.cpp's name."""


def architecture(config: Any) -> str:
    """llama.cpp's name of a model's architecture.

    Raises:
        ValueError: it is not one that is written here, or llama.cpp would compute something else.
    """
    kind = config.model_type
    if kind not in ARCHITECTURES:
        raise ValueError(f"models of type {kind!r} are not written as GGUF; {nearest(kind, ARCHITECTURES)}")
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and window < config.max_position_embeddings:
        raise ValueError(
            f"llama.cpp runs {kind} without the sliding window of {window} tokens; export with --format hf"
        )
    if config.hidden_act != "silu":
        raise ValueError(f"llama.cpp runs {kind} with silu, not {config.hidden_act}; export with --format hf")
    if (rope := _rope(config))["rope_type"] not in ("default", "linear", "llama3"):
        raise ValueError(f"rotary type {rope['rope_type']!r} is not written as GGUF; export with --format hf")
    return ARCHITECTURES[kind]


def add_metadata(writer: GGUFWriter, config: Any, name: str) -> None:
    """Everything but tokenizer and tensors."""
    size = _head_size(config)
    writer.add_name(name)
    writer.add_quantization_version(2)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    rope = _rope(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def rotary_factors(config: Any) -> Tensor | None:
    """What the rotary wavelengths are multiplied by, float32 (head size / 2): Llama 3.1's stretching, or None.

    References:
        `transformers`, `_compute_llama3_parameters`.
    """
    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return None
    size, context = _head_size(config), rope["original_max_position_embeddings"]
    lengths = 2 * math.pi * rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = ((context / lengths - low) / (high - low)).clamp(0, 1)
    factors: Tensor = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return factors.float()


def row_order(config: Any, name: str) -> Callable[[Tensor], Tensor]:
    """The order in which llama.cpp has the rows of a tensor: it pairs neighbours where others pair halves of heads."""
    heads = {
        "self_attn.q_proj": config.num_attention_heads,
        "self_attn.k_proj": config.num_key_value_heads,
    }.get(".".join(name.split(".")[-3:-1]))
    if architecture(config) != _LLAMA or heads is None:
        return lambda rows: rows
    return lambda rows: rows.reshape(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rope(config: Any) -> dict[str, Any]:
    return {"rope_type": "default", **config.rope_parameters}
