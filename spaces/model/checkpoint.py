"""A Hugging Face checkpoint that is read tensor by tensor, so that the model never has to fit in memory."""

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
from transformers.initialization import no_init_weights
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
    """A folder with `config.json` and the weights in one safetensors file or several.

    Nothing is unpickled. No weight is kept in memory: every call of `tensor` reads the file.

    Args:
        path: folder of the model, or its name on the Hugging Face hub, from where it is downloaded to the hub's cache.
        trust_remote_code: whether to run Python code that comes with the checkpoint.

    Attributes:
        path: folder of the model.
        config: the model's configuration.
        files: paths of the safetensors files.

    Raises:
        ValueError: there is no such model, the model is not a dense decoder-only language model, the model is
            already quantised, or the folder has no safetensors files.
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
        """The name of the model's class."""
        return _architecture(self.config)

    def skeleton(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """Build the model in evaluation mode, with its parameters on the meta device and its buffers in memory.

        Args:
            dtype: type in which the model will compute. Buffers have the type that `from_pretrained` gives them for
                it, for example float32 for rotary frequencies.

        Raises:
            ValueError: the model is a mixture of experts.
        """
        with init_empty_weights(include_buffers=False), no_init_weights():
            # transformers writes the dtype into the configuration, so it gets a copy.
            model = _from_config(copy.deepcopy(self.config), dtype=dtype, trust_remote_code=self._trust)
        model.tie_weights()
        model.train(False)
        _refuse_experts(model)
        return model

    def tensor(self, name: str) -> Tensor:
        """Read one tensor in the stored type and layout.

        The files may have another name for the tensor: one without the prefix of the base model, one of an older
        version of transformers, or that of a parameter that the tensor is tied to.

        Args:
            name: name of the tensor in the model.

        Raises:
            ValueError: the tensor is not in the files.
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
        """The SHA-256, in hex, of the names, sizes and contents of `config.json` and the safetensors files."""
        digest = hashlib.sha256()
        for path in [self.path / _CONFIG, *self.files]:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        return digest.hexdigest()

    @cached_property
    def _locations(self) -> dict[str, Path]:
        """The file of every stored tensor, by the tensor's name in the files."""
        found: dict[str, Path] = {}
        for path in self.files:
            with safe_open(path, framework="pt") as file:
                found.update(dict.fromkeys(file.keys(), path))
        return found

    @cached_property
    def model_names(self) -> dict[str, str]:
        """The name in the model of every stored tensor, by its name in the files."""
        model = self.skeleton()
        names = model.state_dict(keep_vars=True)
        renamings = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
        return {
            key: rename_source_key(key, renamings, [], model.base_model_prefix, names)[0]
            for key in sorted(self._locations)
        }

    @cached_property
    def _stored(self) -> dict[str, str]:
        """The name in the files of every tensor, by its name in the model, as `from_pretrained` matches them.

        All names of tied parameters are present if one of them is stored.
        """
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
        """Refuse tied parameters that are stored with different values."""
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
    """Return the folder of a model, which is downloaded if `path` is a name on the Hugging Face hub."""
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
    """Return the safetensors files of a folder, in order of name."""
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
    """Refuse a model whose configuration shows that the model is not supported."""
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
    """Refuse a mixture of experts whose configuration does not name the number of experts in a known way."""
    name = type(model).__name__
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and path.rpartition(".")[2] == "experts":
            raise ValueError(_experts_message(name, f"{path} is a list of {len(module)}"))
    for path, parameter in model.named_parameters():
        if parameter.dim() == 3 and "expert" in path:
            raise ValueError(_experts_message(name, f"{path} holds {len(parameter)}"))


def _experts_message(name: str, fact: str) -> str:
    return f"{name} is a mixture of experts ({fact}), which is not supported; give a dense model"
