"""Llama, Mistral, Qwen2 and Qwen3 models whose blocks may lack attention or MLP, or have MLPs of several widths.

`block_configs` in config.json says which branches every block has, under the names of NVIDIA's `nemotron-nas` models:
`attention.no_op`, `ffn.no_op`, `ffn.intermediate_size`. A missing branch has no weights, and
neither has its norm.

Open a folder that holds this file with `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn


class Fields(dict[str, Any]):
    """A dictionary whose keys can be read as attributes, as in `block.ffn.no_op`, and that JSON can write."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class _NoAttention(nn.Module):
    """Replacement of a missing attention; it returns zeros."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


class _NoMLP(nn.Module):
    """Replacement of a missing MLP; it returns zeros."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.zeros_like(hidden_states)


class _Config:
    """Part of a configuration that holds one entry per block in `block_configs`."""

    model_type = "nemotron-nas"

    @property
    def block_configs(self) -> list[Fields]:
        found: list[Fields] = self.__dict__.get("block_configs", [])
        return found

    @block_configs.setter
    def block_configs(self, blocks: Sequence[Mapping[str, Any]]) -> None:
        self.__dict__["block_configs"] = [Fields({k: Fields(v) for k, v in b.items()}) for b in blocks]


class _Model:
    """Part of a model that replaces or resizes the branches of its blocks as `block_configs` says."""

    model: Any

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        config, attentions = self.model.config, 0
        for layer, block in zip(self.model.layers, config.block_configs, strict=True):
            if block.attention.no_op:
                layer.input_layernorm, layer.self_attn = nn.Identity(), _NoAttention()
            else:
                # Number the attentions without gaps: a cache takes its length from its first entry.
                layer.self_attn.layer_idx = attentions
                attentions += 1
            if block.ffn.no_op:
                layer.post_attention_layernorm, layer.mlp = nn.Identity(), _NoMLP()
            elif block.ffn.intermediate_size != config.intermediate_size:
                other = copy.deepcopy(config)
                other.intermediate_size = block.ffn.intermediate_size
                layer.mlp = type(layer.mlp)(other)


class DeciLMConfig(_Config, transformers.LlamaConfig):
    """Configuration of a Llama model with an entry for every block."""


class DeciLMForCausalLM(_Model, transformers.LlamaForCausalLM):
    """Llama model with missing branches; vLLM knows such models by this class name."""

    config_class = DeciLMConfig


class NasMistralConfig(_Config, transformers.MistralConfig):
    """Configuration of a Mistral model with an entry for every block."""


class NasMistralForCausalLM(_Model, transformers.MistralForCausalLM):
    """Mistral model whose blocks may lack branches."""

    config_class = NasMistralConfig


class NasQwen2Config(_Config, transformers.Qwen2Config):
    """Configuration of a Qwen2 model with an entry for every block."""


class NasQwen2ForCausalLM(_Model, transformers.Qwen2ForCausalLM):
    """Qwen2 model whose blocks may lack branches."""

    config_class = NasQwen2Config


class NasQwen3Config(_Config, transformers.Qwen3Config):
    """Configuration of a Qwen3 model with an entry for every block."""


class NasQwen3ForCausalLM(_Model, transformers.Qwen3ForCausalLM):
    """Qwen3 model whose blocks may lack branches."""

    config_class = NasQwen3Config
