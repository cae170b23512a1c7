"""The export format `compressed-tensors`: the integer codes and scales of the levels, without any conversion.

Layers whose level has no integers are written dense, which is exact. Levels that the format cannot hold are refused.

References:
    https://github.com/vllm-project/compressed-tensors (format `pack-quantized`).
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...spaces.levels.labels import Grid, parse_label
from ...spaces.levels.sizes import SizeRule, compressed_tensors
from ...spaces.model.dense_model import DenseModel
from ..artifact.compression import Compression
from ..artifact.fusing import mixed_groups
from ..artifact.limits import byte_limit
from ..artifact.remains import Remains
from ..artifact.tensor_files import PlannedTensor
from ..artifact.winner import Winner
from .model_folder import write_model
from .packed_checkpoint import PackedCheckpoint
from .quantization_config import OLDEST, packed_config
from .words import to_words, word_count

_KERNEL_BITS = (4, 8)
_KERNEL_GROUPS = (32, 64, 128)
_HALVES = {torch.float16: "F16", torch.bfloat16: "BF16"}


class PackedLayout:
    """The `Layout` of packed layers: codes in 32-bit words, one scale per group, and the shape of the weight.

    Readers multiply codes and scales in the model's type. The weights are exact only if the scales have this type.

    Args:
        dtype: floating-point type of the model's weights and of the levels' scales.

    Raises:
        ValueError: the type is neither float16 nor bfloat16.
    """

    name = "compressed-tensors"
    sentence = (
        f"The weights are packed integers: `pack-quantized` of `compressed-tensors` {OLDEST} or newer. Load them as they "
        "are: `CompressedTensorsConfig(dequantize=True)` of transformers 5.23 and 5.24 gives wrong weights where layers "
        "differ in bits."
    )
    needs: Mapping[str, str] = {"compressed-tensors": f">={OLDEST}"}
    rule: SizeRule | None = staticmethod(compressed_tensors)
    budget: str | None = name
    left_out: Mapping[str, tuple[str, ...]] = {}
    companions: tuple[Path, ...] = ()

    def __init__(self, dtype: torch.dtype) -> None:
        if dtype not in _HALVES:
            raise ValueError(
                f"the model is stored in {dtype}, but packed weights are read in the type of their 16-bit scales; "
                "search a copy of it in bfloat16 or float16, or export with --format hf"
            )
        self._dtype = dtype

    def store(self, compression: Compression, dense: PlannedTensor) -> list[PlannedTensor]:
        """Return words, scales and shape of a layer with an integer level, or the dense weight of another layer.

        Raises:
            ValueError: the layer is stored in another type than the model.
        """
        if dense.dtype != _HALVES[self._dtype]:
            raise ValueError(
                f"{dense.layer} is stored as {dense.dtype} in a model of {self._dtype}; pin it to `dense` "
                "(space.units.exclude), or export with --format hf"
            )
        grid = parse_label(compression.levels[dense.layer]).grid
        if grid is None:
            return [dense]
        outputs, inputs = dense.shape

        def planned(part: str, dtype: str, shape: tuple[int, ...]) -> PlannedTensor:
            make = partial(_part, compression, dense.layer, part)
            return PlannedTensor(f"{dense.name}_{part}", dtype, shape, make, dense.layer)

        return [
            planned("packed", "I32", (outputs, word_count(inputs, grid.bits))),
            planned("scale", dense.dtype, (outputs, grid.groups(inputs))),
            planned("shape", "I64", (2,)),
        ]

    def configure(self, config: dict[str, Any], compression: Compression, left: Remains) -> dict[str, Any]:
        """Add the scheme of every layer to the configuration, and set its `dtype` to the type of the scales.

        Raises:
            ValueError: a level does not fit the format, or no layer has an integer level.
        """
        grids: dict[str, tuple[Grid, int]] = {}
        ignore = []
        for source, path in left.paths().items():
            label = compression.levels.get(source)
            grid = parse_label(label).grid if label else None
            if grid is not None:
                grids[path] = (_held(compression, source, grid), compression.linears[source].in_features)
            elif source != compression.structure.ends.embedding.path:
                ignore.append(path)
        if not grids:
            raise ValueError("no layer has an integer level, so there is nothing to pack; use --format hf")
        named = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
        types: dict[str, Any] = dict.fromkeys(named, str(self._dtype).removeprefix("torch."))
        return {**config, **types, "quantization_config": packed_config(grids, ignore)}

    def open(self, folder: Path, trust_remote_code: bool) -> DenseModel:
        """Open the written folder as a model whose packed layers are read as dense weights."""
        return DenseModel(PackedCheckpoint(folder, trust_remote_code))


def export_compressed_tensors(winner: Winner, output: Path, overwrite: bool) -> list[str]:
    """Write the winner with packed weights; return lines about the files and the programs that read them."""
    written = write_model(winner, PackedLayout(winner.checkpoint.dtype), output, overwrite=overwrite)
    limit = byte_limit(winner, PackedLayout.name)
    return [
        f"{output}: {written.bytes:,} bytes, {written.tensor_bytes:,} of them tensors, as the size rules say"
        + (f"; the budget allows {limit:,}" if limit else ""),
        *written.lines(winner),
        *serving_notes(winner),
        f"next: AutoModelForCausalLM.from_pretrained({str(output)!r})",
    ]


def serving_notes(winner: Winner) -> list[str]:
    """Return lines that a user of the files must know before serving the model."""
    schemes = [parse_label(label) for label in winner.assignment.values() if label not in ("dense", "drop")]
    grids = [scheme.grid for scheme in schemes if scheme.grid is not None]
    notes = [
        f"read by: transformers with compressed-tensors>={OLDEST} (pip install 'paretopress[compressed-tensors]')"
    ]
    if groups := mixed_groups(winner.structure, winner.assignment):
        notes.append(
            f"not for vLLM: {len(groups)} groups of layers that vLLM fuses differ in scheme; the first group is "
            f"{', '.join(groups[0])}"
        )
    if len(set(grids)) > 1:
        notes.append(
            "load the packed model as it is: `CompressedTensorsConfig(dequantize=True)` of transformers 5.23 and 5.24 gives wrong "
            "weights where layers differ in bits"
        )
    if odd := sorted({grid.bits for grid in grids} - set(_KERNEL_BITS)):
        notes.append(
            f"vLLM runs layers of {_listed(odd)} bits only with its Humming kernels; 4 and 8 bits have more kernels"
        )
    if other := sorted({grid.group for grid in grids if grid.group} - set(_KERNEL_GROUPS)):
        notes.append(
            f"vLLM's Marlin kernels take groups of 32, 64, 128 or whole rows, not of {_listed(other)}"
        )
    if winner.assignment.get(winner.structure.ends.head.path, "dense") != "dense":
        notes.append("the head is packed too, which SGLang and vLLM before March 2026 do not read")
    if zeros := sum(scheme.sparsity is not None for scheme in schemes):
        notes.append(
            f"the zeros in {zeros} layers are kept, but they make nothing smaller or faster: no engine uses zeros in this format"
        )
    return notes


def _held(compression: Compression, path: str, grid: Grid) -> Grid:
    """Return `grid`, the grid of the layer at `path`, or refuse a grid that the format cannot hold for this layer."""
    linear, label = compression.linears[path], compression.levels[path]
    ends = compression.structure.ends
    fact = ""
    if path == ends.embedding.path or (ends.tied and path == ends.head.path):
        fact = "holds no quantised embeddings; pin it to `dense` (space.units.ends=false)"
    elif linear.transposed:
        fact = "holds only torch.nn.Linear layers, not a Conv1D; pin it to `dense` (space.units.exclude)"
    elif not grid.symmetric:
        fact = f"is written without zero points; search the symmetric {label.removesuffix('a')!r}"
    elif grid.group is not None and grid.group < linear.in_features and linear.in_features % grid.group:
        fact = f"needs whole groups, and {linear.in_features} inputs are no multiple of {grid.group}; choose a divisor"
    if fact:
        raise ValueError(f"{path} takes {label!r}, but compressed-tensors {fact}, or export with --format hf")
    return grid


def _part(compression: Compression, layer: str, part: str) -> Tensor:
    """Return one stored tensor of a layer with an integer level; `part` is `packed`, `scale` or `shape`."""
    level = compression.packed(layer)
    assert level is not None
    if part == "scale":
        return level.tensors["scales"].cpu()
    if part == "shape":
        return torch.tensor(level.shape)
    grid = level.scheme.grid
    assert grid is not None
    codes_OI = level.codes().cpu().view(torch.uint8) + 2 ** (grid.bits - 1)
    return to_words(codes_OI, grid.bits)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
