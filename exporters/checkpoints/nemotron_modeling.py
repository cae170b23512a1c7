"""Llama, Mistral, Qwen2 and Qwen3 whose blocks may lack attention or MLP, or have MLPs of several widths.

`block_configs` in config.json says what every block has, under the names of NVIDIA's `nemotron-nas` models:
`attention.no_op`, `ffn.no_op`, `ffn.intermediate_size`. What a block lacks has no weights, not even a norm.
Open a folder that holds this file with `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn


class Fields(dict[str, Any]):
    """A dictionary whose keys are attributes too: engines read `block.ffn.no_op`, JSON writes it."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class _NoAttention(nn.Module):
    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


class _NoMLP(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.zeros_like(hidden_states)


class _Config:
    model_type = "nemotron-nas"

    @property
    def block_configs(self) -> list[Fields]:
        found: list[Fields] = self.__dict__.get("block_configs", [])
        return found

    @block_configs.setter
    def block_configs(self, blocks: Sequence[Mapping[str, Any]]) -> None:
        self.__dict__["block_configs"] = [Fields({k: Fields(v) for k, v in b.items()}) for b in blocks]


class _Model:
    model: Any

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        config, attentions = self.model.config, 0
        for layer, block in zip(self.model.layers, config.block_configs, strict=True):
            if block.attention.no_op:
                layer.input_layernorm, layer.self_attn = nn.Identity(), _NoAttention()
            else:
                # Without gaps: the first entry of a cache tells the length of all.
                layer.self_attn.layer_idx = attentions
                attentions += 1
            if block.ffn.no_op:
                layer.post_attention_layernorm, layer.mlp = nn.Identity(), _NoMLP()
            elif block.ffn.intermediate_size != config.intermediate_size:
                other = copy.deepcopy(config)
                other.intermediate_size = block.ffn.intermediate_size
                layer.mlp = type(layer.mlp)(other)


class DeciLMConfig(_Config, transformers.LlamaConfig):
    """The configuration of Llama models with an entry for every block."""


class DeciLMForCausalLM(_Model, transformers.LlamaForCausalLM):
    """Llama, under the name by which vLLM knows such models."""

    config_class = DeciLMConfig


class NasMistralConfig(_Config, transformers.MistralConfig):
    """The configuration of Mistral models with an entry for every block."""


class NasMistralForCausalLM(_Model, transformers.MistralForCausalLM):
    """Mistral."""

    config_class = NasMistralConfig


class NasQwen2Config(_Config, transformers.Qwen2Config):
    """The configuration of Qwen2 models with an entry for every block."""


class NasQwen2ForCausalLM(_Model, transformers.Qwen2ForCausalLM):
    """Qwen2."""

    config_class = NasQwen2Config


class NasQwen3Config(_Config, transformers.Qwen3Config):
    """The configuration of Qwen3 models with an entry for every block."""


class NasQwen3ForCausalLM(_Model, transformers.Qwen3ForCausalLM):
    """Qwen3."""

    config_class = NasQwen3Config
