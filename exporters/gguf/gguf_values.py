"""Conversion of tensors from `transformers` to llama.cpp, which differ in the order of rows and in some values."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .gguf_families import head_size, rotary
from .gguf_target import LACKING, Target

_SHIFTED = ("gemma", "gemma2", "gemma3")
"""Architectures whose norm weights `transformers` stores minus one."""


def rotary_factors(config: Any) -> Tensor | None:
    """Return the factors that divide the rotary frequencies, float32 (head size / 2), for the rotary type of Llama 3.1.

    The result is None for other rotary types.

    References:
        `transformers`, `_compute_llama3_parameters`.
    """
    rope = next((rope for rope in rotary(config).values() if rope["rope_type"] == "llama3"), None)
    if rope is None:
        return None
    size, context = head_size(config), rope["original_max_position_embeddings"]
    lengths = 2 * math.pi * rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = ((context / lengths - low) / (high - low)).clamp(0, 1)
    factors: Tensor = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return factors.float()


def as_llama_cpp(target: Target, name: str) -> Callable[[Tensor], Tensor]:
    """Return a function that converts a tensor of `transformers`, or its packed rows, to llama.cpp's tensor.

    The rotary embedding of llama.cpp's Llama pairs neighbouring elements of a head, where `transformers` pairs the two
    halves. In GPT-NeoX, llama.cpp has the rows of all queries, then all keys, then all values, where `transformers` has
    them head by head. `transformers` stores the norm weights of Gemma minus one.

    Args:
        target: the model that is written.
        name: name of the tensor in the model of `transformers`.
    """
    kind, heads = target.architecture, target.config.num_attention_heads
    layer = ".".join(name.split(".")[-3:-1])
    if kind in ("llama", LACKING) and layer in ("self_attn.q_proj", "self_attn.k_proj"):
        pairs = heads if layer.endswith("q_proj") else target.config.num_key_value_heads
        return lambda rows: rows.reshape(pairs, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
    if kind == "gptneox" and layer == "attention.query_key_value":
        return lambda rows: rows.reshape(heads, 3, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)
    if kind in _SHIFTED and name.endswith("norm.weight"):
        return lambda norm: norm + 1
    return lambda rows: rows
