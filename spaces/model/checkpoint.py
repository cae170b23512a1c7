"""A Hugging Face checkpoint that is read tensor by tensor: the model never has to fit in memory."""

import copy
import difflib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

_CONFIG = "config.json"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_DOWNLOAD = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_EXPERT_COUNT = re.compile(r"(moe_)?(num|n)_(local_|routed_)?experts")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK = 1 << 22
_from_config: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config


class Checkpoint:
    """A directory with `config.json` and safetensors files, one or sharded.

    Nothing is unpickled, and no weight is kept: every `tensor` is read when it is asked for.

    Args:
        path: the directory, or a name on the Hugging Face hub (downloaded to its cache).
        trust_remote_code: allow Python code that comes with the checkpoint.

    Raises:
        ValueError: there is no such model, it is not a dense decoder-only language model, it is already
            quantised, or it has no safetensors files.
    """

    def __init__(self, path: str | Path, trust_remote_code: bool = False) -> None:
        self.path = _directory(path)
        self._trust = trust_remote_code
        if not (self.path / _CONFIG).is_file():
            raise ValueError(f"{self.path} has no {_CONFIG}; give the directory of a Hugging Face model")
        self.config: PreTrainedConfig = AutoConfig.from_pretrained(
            self.path, trust_remote_code=trust_remote_code
        )
        _refuse(self.config, trust_remote_code)
        self.files = _files(self.path)

    @property
    def architecture(self) -> str:
        """Name of the model's class."""
        return _architecture(self.config)

    def skeleton(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """The model in evaluation mode, its parameters on the meta device and its buffers real.

        Args:
            dtype: what the model will compute in. Buffers are as `from_pretrained` makes them for it; those
                that must be float32, such as rotary frequencies, are.

        Raises:
            ValueError: the model holds experts.
        """
        with init_empty_weights(include_buffers=False):
            # A copy, because transformers writes the dtype into the configuration it is given.
            model = _from_config(copy.deepcopy(self.config), dtype=dtype, trust_remote_code=self._trust)
        model.tie_weights()
        model.train(False)
        _refuse_experts(model)
        return model

    def tensor(self, name: str) -> Tensor:
        """Read one tensor in the stored dtype and layout, by the model's name for it.

        The file may name it without the base model's prefix, by a name of an older version of transformers,
        or by the name it is tied to.

        Raises:
            ValueError: it is not in the files.
        """
        if name not in self._stored:
            near = difflib.get_close_matches(name, self._locations, n=1, cutoff=0.0)
            raise ValueError(
                f"{self.path} has no tensor for {name!r} of {self.architecture}; the nearest stored is {near[0]!r}"
            )
        stored = self._stored[name]
        with safe_open(self._locations[stored], framework="pt") as file:
            tensor: Tensor = file.get_tensor(stored)
        return tensor

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    @cached_property
    def dtype(self) -> torch.dtype:
        """The floating-point type that most stored weights have."""
        weights: Counter[str] = Counter()
        for path in self.files:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - not a mapping
                    stored = file.get_slice(key)
                    weights[stored.get_dtype()] += torch.Size(stored.get_shape()).numel()
        floating = [name for name, _ in weights.most_common() if name in _DTYPES]
        if not floating:
            raise ValueError(
                f"{self.path} stores {', '.join(weights)} only; give a checkpoint in 16 or 32 bit floats"
            )
        return _DTYPES[floating[0]]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the names and contents of `config.json` and the safetensors files."""
        digest = hashlib.sha256()
        for path in [self.path / _CONFIG, *self.files]:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        return digest.hexdigest()

    @cached_property
    def _locations(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in self.files:
            with safe_open(path, framework="pt") as file:
                found.update(dict.fromkeys(file.keys(), path))
        return found

    @cached_property
    def model_names(self) -> dict[str, str]:
        """The files' name of every tensor to the model's."""
        model = self.skeleton()
        names = model.state_dict(keep_vars=True)
        renamings = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
        return {
            key: rename_source_key(key, renamings, [], model.base_model_prefix, names)[0]
            for key in sorted(self._locations)
        }

    @cached_property
    def _stored(self) -> dict[str, str]:
        """The model's name of a tensor to the file's, as `from_pretrained` would match them."""
        stored = {name: key for key, name in self.model_names.items()}
        tied: dict[int, list[str]] = {}
        for name, tensor in self.skeleton().state_dict(keep_vars=True).items():
            tied.setdefault(id(tensor), []).append(name)
        for names in tied.values():
            present = [name for name in names if name in stored]
            self._check_tied([stored[name] for name in present])
            stored.update((name, stored[present[0]]) for name in names if present and name not in stored)
        return stored

    def _check_tied(self, keys: list[str]) -> None:
        tensors = []
        for key in keys if len(keys) > 1 else ():
            with safe_open(self._locations[key], framework="pt") as file:
                tensors.append(file.get_tensor(key))
        if any(not torch.equal(tensors[0], tensor) for tensor in tensors[1:]):
            raise ValueError(
                f"{' and '.join(keys)} of {self.architecture} differ in the files but are tied by its "
                "configuration; set tie_word_embeddings to false in config.json"
            )


def _directory(path: str | Path) -> Path:
    directory = Path(path).expanduser()
    if directory.is_dir():
        return directory
    if not _HUB_NAME.fullmatch(str(path)):
        raise ValueError(f"model {str(path)!r} is not a directory; check the path")
    try:
        return Path(snapshot_download(str(path), allow_patterns=_DOWNLOAD))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model {str(path)!r} is neither a directory nor on the Hugging Face hub "
            f"({type(error).__name__}); check the name and the network"
        ) from error


def _files(directory: Path) -> tuple[Path, ...]:
    if (directory / _INDEX).is_file():
        shards = sorted(set(json.loads((directory / _INDEX).read_text())["weight_map"].values()))
        missing = [name for name in shards if not (directory / name).is_file()]
        if missing:
            raise ValueError(f"{directory} lacks {missing[0]}, which its index names; download it again")
        return tuple(directory / name for name in shards)
    if (directory / _SINGLE).is_file():
        return (directory / _SINGLE,)
    if any(directory.glob("*.bin")):
        raise ValueError(
            f"{directory} has its weights in .bin files only, which would have to be unpickled; "
            "convert it with AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
        )
    raise ValueError(f"{directory} has neither {_SINGLE} nor {_INDEX}; give a checkpoint with safetensors")


def _architecture(config: PreTrainedConfig) -> str:
    names = config.architectures or [type(config).__name__]
    return str(names[0])


def _refuse(config: PreTrainedConfig, trust_remote_code: bool) -> None:
    """Raise ValueError for what the configuration alone shows to be unsupported."""
    name = _architecture(config)
    remote = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() and not remote:
        raise ValueError(
            f"{name} is not a decoder-only language model that transformers has; "
            "give a checkpoint whose config.json names a causal one, such as LlamaForCausalLM"
        )
    quantisation = getattr(config, "quantization_config", None)
    if quantisation is not None:
        method = quantisation.get("quant_method") if isinstance(quantisation, Mapping) else None
        raise ValueError(
            f"this {name} is already quantised ({method or 'quantization_config'}); give the original checkpoint"
        )
    for key, value in config.get_text_config().to_dict().items():
        if _EXPERT_COUNT.fullmatch(key) and isinstance(value, int) and value > 1:
            raise ValueError(_experts_message(name, f"{key} is {value}"))


def _refuse_experts(model: PreTrainedModel) -> None:
    """Raise ValueError for experts that the configuration does not count under a known name."""
    name = type(model).__name__
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and path.rpartition(".")[2] == "experts":
            raise ValueError(_experts_message(name, f"{path} is a list of {len(module)}"))
    for path, parameter in model.named_parameters():
        if parameter.dim() == 3 and "expert" in path:
            raise ValueError(_experts_message(name, f"{path} holds {len(parameter)}"))


def _experts_message(name: str, fact: str) -> str:
    return f"{name} is a mixture of experts ({fact}), which is not supported; give a dense model"
