"""The export format `nemotron-nas`: dense checkpoints without the dropped branches, with the code that reads them.

References:
    https://huggingface.co/nvidia/Llama-3_3-Nemotron-Super-49B-v1 (names in `block_configs`);
    https://github.com/vllm-project/vllm (vllm/model_executor/models/nemotron_nas.py: the names that vLLM reads).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...spaces.levels.sizes import SizeRule
from ...spaces.model.dense_model import DenseModel
from ...spaces.model.structure import find_structure
from ..artifact.compression import Compression
from ..artifact.limits import byte_limit
from ..artifact.remains import Remains
from ..artifact.tensor_files import PlannedTensor
from ..artifact.winner import Winner
from . import nemotron_modeling as modeling
from .model_folder import WrittenModel, write_model
from .nemotron_checkpoint import CLASSES, FIELDS, PARTS, NemotronCheckpoint, WrittenNemotron

_CODE = Path(modeling.__file__)
_DENSE_AS_STORED = ("packed", "hf", "compressed-tensors")
"""Values of `space.format` that count the bytes of a dense layer as the source stores it."""


class NemotronLayout:
    """The `Layout` of dense weights in the source's types, without the tensors of dropped branches and their norms.

    If all layers of the winner are dense or dropped, the files are as large as the search counted, less the norms of
    the dropped branches. Only then must the files keep a budget in bytes.

    Args:
        winner: model and profile that will be written.

    Raises:
        ValueError: there is no modelling code for the model's architecture.
    """

    name = "nemotron-nas"
    sentence = (
        "The weights are dense, but dropped attentions and MLPs are not in the files. `nemotron_modeling.py` runs what "
        "is left: load model and tokenizer with `trust_remote_code=True`."
    )
    needs: Mapping[str, str] = {}
    rule: SizeRule | None = None
    left_out: Mapping[str, tuple[str, ...]] = PARTS
    companions: tuple[Path, ...] = (_CODE,)

    def __init__(self, winner: Winner) -> None:
        self._config = winner.checkpoint.config
        if type(self._config) not in CLASSES:
            raise ValueError(
                f"nemotron-nas has code for Llama, Mistral, Qwen2 and Qwen3, and this is {winner.structure.model_class}; "
                "export with --format hf, which writes dropped branches as zeros, or search with space.drop=blocks"
            )
        self._classes = CLASSES[type(self._config)]
        counted = winner.counted
        dense = set(winner.assignment.values()) <= {"dense", "drop"}
        self.budget: str | None = counted if dense and counted in _DENSE_AS_STORED else None

    def store(self, compression: Compression, dense: PlannedTensor) -> list[PlannedTensor]:
        """Return the dense weight as the only tensor of the layer."""
        del compression
        return [dense]

    def configure(self, config: dict[str, Any], compression: Compression, left: Remains) -> dict[str, Any]:
        """Return the configuration with one entry per block and with the names of the classes that open the folder.

        Raises:
            ValueError: attentions are absent, and the kept blocks have attentions of several types.
        """
        types = getattr(self._config, "layer_types", None)
        kept = sorted({types[i] for i in left.kept} if types else ())
        if len(kept) > 1 and any(name.endswith(".attention") for name in left.absent):
            raise ValueError(
                f"{compression.structure.model_class} mixes {' and '.join(kept)}, and its cache needs the attention of "
                "every block; export with --format hf, or search with space.drop=blocks"
            )
        auto = ("AutoConfig", "AutoModelForCausalLM")
        return config | {
            "model_type": self.name,
            "architectures": [self._classes[1].__name__],
            "auto_map": {
                name: f"{_CODE.stem}.{found.__name__}"
                for name, found in zip(auto, self._classes, strict=True)
            },
            "block_configs": [self._block(compression.dropped.get(i, ())) for i in left.kept],
        }

    def open(self, folder: Path, trust_remote_code: bool) -> DenseModel:
        """Open the folder with the modelling code of this package, a copy of which lies in the folder.

        The structure of the model is that of the plain model without the absent branches.
        """
        del trust_remote_code
        plain = NemotronCheckpoint(folder)
        found = find_structure(plain.skeleton())
        blocks = (
            replace(b, branches=tuple(x for x in b.branches if (b.index, x.kind) not in plain.absent))
            for b in found.blocks
        )
        return DenseModel(WrittenNemotron(folder), replace(found, blocks=tuple(blocks)))

    def _block(self, dropped: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        """Return one entry of `block_configs`; as in NVIDIA's files, the size of a dropped branch is None."""
        config = self._config
        sizes = {
            "attention": ("n_heads_in_group", config.num_attention_heads // config.num_key_value_heads),
            "mlp": ("intermediate_size", config.intermediate_size),
        }
        return {
            FIELDS[kind]: {"no_op": kind in dropped, name: None if kind in dropped else size}
            for kind, (name, size) in sizes.items()
        }


def export_nemotron_nas(winner: Winner, output: Path, overwrite: bool) -> list[str]:
    """Write the winner without its dropped branches; return lines about the files and the programs that read them."""
    layout = NemotronLayout(winner)
    written = write_model(winner, layout, output, overwrite=overwrite)
    limit = byte_limit(winner, layout.budget) if layout.budget else None
    return [
        f"{output}: {written.bytes:,} bytes of dense weights in {winner.checkpoint.dtype}"
        + (f", {written.tensor_bytes:,} of them tensors; the budget allows {limit:,}" if limit else ""),
        *written.lines(winner),
        _serving_note(winner, written),
        f"next: AutoModelForCausalLM.from_pretrained({str(output)!r}, trust_remote_code=True)",
    ]


def _serving_note(winner: Winner, written: WrittenModel) -> str:
    """Return a line that says whether vLLM can serve the folder; this follows from vLLM's source, not from a test."""
    model_class = winner.structure.model_class
    first = next(block.index for block in winner.structure.blocks if block.index not in written.removed)
    if model_class != "LlamaForCausalLM":
        return f"not for vLLM: its DeciLMForCausalLM, which reads this format, is a Llama, and this is {model_class}"
    if f"blocks.{first}.attention" in written.absent:
        return "not for vLLM: its DeciLMForCausalLM, which reads this format, needs the attention of the first block"
    return "for vLLM: its DeciLMForCausalLM reads this format by its source code; this was not tested"
