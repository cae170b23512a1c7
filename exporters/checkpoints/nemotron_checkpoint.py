"""Reading of exports in the format `nemotron-nas`, without running the Python code that the folder holds."""

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
"""Configuration class and model class of the `nemotron-nas` version of a model, by the plain configuration class."""

PARTS = {"attention": ("self_attn", "input_layernorm"), "mlp": ("mlp", "post_attention_layernorm")}
"""Names of the block's children that make up a branch, its norm included, by kind of branch."""

FIELDS = {"attention": "attention", "mlp": "ffn"}
"""Name of a branch's entry in `block_configs`, by kind of branch."""

_ADDED = ("architectures", "auto_map", "block_configs", "model_type")


class NemotronCheckpoint(Checkpoint):
    """An export that is read as the plain model that it was made from, with zeros for the weights of absent branches.

    The plain model computes the same logits as the export. `Checkpoint` refuses models for which transformers has no
    class, so this class opens the folder itself.

    Args:
        path: folder of the export.

    Attributes:
        absent: branches that are not in the files, as pairs (block, kind).

    Raises:
        ValueError: the folder's architecture is not one of those in `CLASSES`.
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
        """Return a tensor by its name in the plain model; a tensor of an absent branch is zeros."""
        prefixes = tuple(
            f"model.layers.{index}.{child}." for index, kind in self.absent for child in PARTS[kind]
        )
        if not name.startswith(prefixes):
            return super().tensor(name)
        return torch.zeros(self._shapes[name], dtype=self.dtype)

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        """The shape of every tensor of the plain model, by name."""
        return {name: tensor.shape for name, tensor in self.skeleton().state_dict().items()}


class WrittenNemotron(NemotronCheckpoint):
    """An export with the modules that its modelling file builds, in which absent branches have no weights."""

    def skeleton(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """Build the model without the absent branches, in evaluation mode, with its parameters on the meta device."""
        config_class, model_class = self._classes
        make: Callable[..., PreTrainedModel] = model_class._from_config
        with init_empty_weights(include_buffers=False):
            model = make(config_class(**self._record), dtype=dtype)
        model.tie_weights()
        model.train(False)
        return model
