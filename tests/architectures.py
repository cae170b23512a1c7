"""Small random models of every architecture that the project is checked on.

Every model has a vocabulary of 128, three or four blocks and, where its class knows one, a sliding window of
`WINDOW` positions: shorter than `LENGTH`. Weights are so large that rounding them to 3 bits changes the
output by far more than numerical noise.
"""

from collections.abc import Callable, Container, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from paretopress.spaces.model.dense_model import DenseModel

VOCABULARY = 128
LENGTH = 24
WINDOW = 8

_TOKENS: dict[str, object] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_SIZES: dict[str, object] = {
    **_TOKENS,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_LLAMA: dict[str, object] = {
    **_SIZES,
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
_GEMMA: dict[str, object] = {
    **_LLAMA,
    "num_hidden_layers": 4,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": WINDOW,
    "tie_word_embeddings": True,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_CONFIGS: dict[str, dict[str, object]] = {
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": WINDOW},
    "qwen2": {**_LLAMA, "tie_word_embeddings": True},
    "qwen3": {**_LLAMA, "head_dim": 16},
    "gemma2": {**_GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    "gemma3_text": _GEMMA,
    "phi3": {**_LLAMA, "sliding_window": WINDOW},
    "gpt2": {**_TOKENS, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "gpt_neox": {**_SIZES, "intermediate_size": 48, "use_parallel_residual": True},
    "opt": {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 16},
    "gpt_neo": {
        **_TOKENS,
        "hidden_size": 32,
        "num_layers": 4,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 2]],
        "window_size": WINDOW,
        "max_position_embeddings": 64,
    },
}
ARCHITECTURES = tuple(_CONFIGS)
"""The model types, as transformers names them."""

CORE = ("llama", "gemma2", "gpt2", "gpt_neox")
"""Architectures that differ in all that the others differ in: norms, positions, biases, residual branches side by side."""


def core_first(names: Iterable[str], core: Container[str] = CORE) -> list[Any]:
    """Parameters of a test; those outside `core` are marked slow, because those in it show the same."""
    return [pytest.param(name, marks=() if name in core else pytest.mark.slow) for name in names]


SLIDING = {
    "mistral": "sliding_window",
    "gemma2": "sliding_window",
    "gemma3_text": "sliding_window",
    "phi3": "sliding_window",
    "gpt_neo": "window_size",
}
"""Those with a sliding window, and what their configurations call it."""

make_config: Callable[..., PreTrainedConfig] = AutoConfig.for_model
_from_config: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config


def save_model(name: str, directory: Path) -> Path:
    """Save the model `name` of `ARCHITECTURES` in `directory`, always with the same weights."""
    random_model(make_config(name, **_CONFIGS[name])).save_pretrained(directory)
    return directory


def random_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A float32 model with seeded weights; no global random state is read or changed."""
    with torch.random.fork_rng(devices=[]):
        model = _from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * 1.6 / float(min(parameter.shape)) ** 0.5)
            else:
                parameter.add_(noise, alpha=0.1)
    model.train(False)
    return model


def random_tokens(sequences: int, length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    """Token ids of shape (sequences, length), without the first three, which are special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (sequences, length), generator=generator)


@cache
def opened(directory: Path) -> DenseModel:
    """The model in a folder, opened once for all tests of a process."""
    return DenseModel.open(directory)
