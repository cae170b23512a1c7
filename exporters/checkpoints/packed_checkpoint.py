"""Reading of exported models: packed integers as dense weights, and model folders for evaluation.

Verification and evaluation use the weights that a reader of the files computes.
"""

from functools import cached_property
from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig

from ...spaces.levels.bits import pack
from ...spaces.levels.labels import parse_label
from ...spaces.levels.packed import Packed
from ...spaces.model.checkpoint import Checkpoint
from ...spaces.model.structure import find_structure
from ...spaces.storage.files import read_json
from ..artifact.appearing import RECORD
from ..artifact.stored_names import StoredNames
from .nemotron_checkpoint import NemotronCheckpoint
from .quantization_config import labels_of
from .words import from_words


class PackedCheckpoint(Checkpoint):
    """An export in the format `compressed-tensors` whose packed layers are read as dense weights.

    The scheme of a layer is taken from the folder's `config.json`, not from the profile that was exported. `Checkpoint`
    refuses quantised models, so this class opens the folder itself.

    Args:
        path: folder of the export.
        trust_remote_code: whether to run Python code that comes with the checkpoint.
    """

    def __init__(self, path: Path, trust_remote_code: bool = False) -> None:
        self.path = path
        self._trust = trust_remote_code
        self.config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        self._labels = labels_of(self.config.__dict__.pop("quantization_config"))
        self.files = tuple(sorted(path.glob("*.safetensors")))

    def tensor(self, name: str) -> Tensor:
        """Return a tensor by its name in the model; quantised weights are the products of codes and scales."""
        layer = name.removesuffix(".weight")
        return super().tensor(name) if layer == name or layer not in self._labels else self._weight(layer)

    def _weight(self, layer: str) -> Tensor:
        """Compute the dense weight (O, I) of a quantised layer from its three stored tensors."""
        label = self._labels[layer]
        grid = parse_label(label).grid
        assert grid is not None
        parts = {}
        for part in ("weight_packed", "weight_scale", "weight_shape"):
            stored = self._parts[f"{layer}.{part}"]
            with safe_open(self._locations[stored], framework="pt") as file:
                parts[part] = file.get_tensor(stored)
        outputs, inputs = parts["weight_shape"].tolist()
        codes_OI = from_words(parts["weight_packed"], grid.bits, inputs)
        tensors = {"codes": pack(codes_OI, grid.bits), "scales": parts["weight_scale"]}
        return Packed(label, (outputs, inputs), tensors).dense()

    @cached_property
    def _parts(self) -> dict[str, str]:
        """The name of every stored tensor in the files, by its name in the model."""
        names = StoredNames(self, find_structure(self.skeleton()))
        return {names.model_name(stored): stored for stored in self._locations}


def open_model(path: Path, trust_remote_code: bool) -> Checkpoint:
    """Open a model folder for evaluation: a dense model, or an export as `compressed-tensors` or `nemotron-nas`.

    Raises:
        ValueError: the folder holds no model, or a model that is quantised in another way.
    """
    form = read_json(path / RECORD)["format"] if (path / RECORD).is_file() else ""
    if form == "nemotron-nas":
        return NemotronCheckpoint(path)
    return (PackedCheckpoint if form == "compressed-tensors" else Checkpoint)(path, trust_remote_code)
