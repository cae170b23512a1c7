"""Folders in the format `nemotron-nas`, opened without running the code that lies in them."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import (
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from ...spaces.model.checkpoint import Checkpoint
from ...spaces.storage.files import read_json
from . import nemotron_modeling as modeling

CLASSES: dict[type[PreTrainedConfig], tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    LlamaConfig: (modeling.DeciLMConfig, modeling.DeciLMForCausalLM),
    MistralConfig: (modeling.NasMistralConfig, modeling.NasMistralForCausalLM),
    Qwen2Config: (modeling.NasQwen2Config, modeling.NasQwen2ForCausalLM),
    Qwen3Config: (modeling.NasQwen3Config, modeling.NasQwen3ForCausalLM),
}
"""A plain model's configuration to the configuration and the class of what is left of such a model."""

PARTS = {"attention": ("self_attn", "input_layernorm"), "mlp": ("mlp", "post_attention_layernorm")}
"""Kind of branch to the children of a block that it consists of."""

FIELDS = {"attention": "attention", "mlp": "ffn"}
"""Kind of branch to its name in `block_configs`."""

_ADDED = ("architectures", "auto_map", "block_configs", "model_type")


class NemotronCheckpoint(Checkpoint):
    """An export as the plain model that it was made from, with zeros for what is absent: the same logits.

    `Checkpoint` refuses what transformers has no class for, so this opens the folder itself.

    Attributes:
        absent: (block, kind) of the branches that are not in the files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._trust = False
        self._record = read_json(path / "config.json")
        name = self._record["architectures"][0]
        known = {classes[1].__name__: (plain, classes) for plain, classes in CLASSES.items()}
        if name not in known:
            raise ValueError(
                f"{path} holds {name!r}, which is not one of {', '.join(known)}; export it again"
            )
        plain, self._classes = known[name]
        self.config = plain(**{key: value for key, value in self._record.items() if key not in _ADDED})
        self.absent = frozenset(
            (index, kind)
            for index, block in enumerate(self._record["block_configs"])
            for kind, field in FIELDS.items()
            if block[field]["no_op"]
        )
        self.files = tuple(sorted(path.glob("*.safetensors")))

    def tensor(self, name: str) -> Tensor:
        """A tensor by the plain model's name; zeros if its branch is absent."""
        prefixes = tuple(
            f"model.layers.{index}.{child}." for index, kind in self.absent for child in PARTS[kind]
        )
        if not name.startswith(prefixes):
            return super().tensor(name)
        return torch.zeros(self._shapes[name], dtype=self.dtype)

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in self.skeleton().state_dict().items()}


class WrittenNemotron(NemotronCheckpoint):
    """An export as the modelling file that lies in it makes it."""

    def skeleton(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """The model without the absent branches, its parameters on the meta device."""
        config_class, model_class = self._classes
        make: Callable[..., PreTrainedModel] = model_class._from_config
        with init_empty_weights(include_buffers=False):
            model = make(config_class(**self._record), dtype=dtype)
        model.tie_weights()
        model.train(False)
        return model
