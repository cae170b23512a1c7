"""Writing of GGUF files: tensors in llama.cpp's types and names, written one by one, read back and compared."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from torch import Tensor

from ...spaces.model.structure import Linear
from ..artifact.compression import Compression
from ..artifact.remains import Remains
from ..artifact.stored_names import StoredNames
from ..artifact.tensor_files import PlannedTensor
from .gguf_metadata import add_metadata
from .gguf_names import tensor_names
from .gguf_target import Target
from .gguf_tokenizer import add_tokenizer
from .gguf_values import as_llama_cpp, rotary_factors

_PLAIN = {"F32": "F32", "F16": "F16", "BF16": "BF16", "F64": "F32"}
"""llama.cpp's type for each floating-point type of safetensors."""
_COMPUTED = (
    ".rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
)
"""Ends of the names of buffers that old checkpoints hold and that models compute themselves."""
ROTARY = "rope_freqs.weight"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class TypedTensor:
    """One tensor of a GGUF file.

    Attributes:
        planned: name in the file, type, shape and content of the tensor. A layer at a level is a tensor of bytes,
            (O, bytes of a row).
        kind: storage type of the tensor in llama.cpp.
    """

    planned: PlannedTensor
    kind: GGMLQuantizationType

    def bytes(self) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
        """Return the bytes of the tensor, (rows, bytes of a row) for a matrix and one dimension for a vector."""
        tensor = self.planned.make().contiguous()
        return tensor.view(torch.uint8).numpy()


def typed(
    tensors: Iterable[PlannedTensor],
    stored: StoredNames,
    compression: Compression,
    left: Remains,
    target: Target,
) -> list[TypedTensor]:
    """Plan the tensors of the file, with llama.cpp's names, types and order of rows.

    Layers with a level take its storage type, and dense linear layers keep the type of the source. All other tensors
    are stored in float32.

    Args:
        tensors: dense tensors of the source's files that are written.
        stored: converter of the names in the files to the names in the model.
        compression: levels of the layers, which must be storage types of llama.cpp.
        left: blocks that are written, with the new paths of their layers.
        target: the model that is written.

    Raises:
        ValueError: llama.cpp has no tensor for a name, or a level is not one of its storage types.
    """
    names = tensor_names(target.architecture, target.config.num_hidden_layers)
    named = {stored.model_name(tensor.name): tensor for tensor in tensors}
    written = {left_path: compression.linears[path] for path, left_path in left.paths().items()}
    ends = compression.structure.ends
    if ends.tied:
        written.pop(ends.head.path, None)
        if (head := named.pop(f"{ends.head.path}.weight", None)) is not None:
            named.setdefault(f"{ends.embedding.path}.weight", head)
    found = []
    for model_name, tensor in named.items():
        if not model_name.endswith(_COMPUTED):
            linear = (
                written.get(model_name.removesuffix(".weight")) if model_name.endswith(".weight") else None
            )
            change = as_llama_cpp(target, model_name)
            found.append(_typed(replace(tensor, name=names(model_name)), compression, linear, change))
    added = target.zeros()
    factors = rotary_factors(target.config)
    if factors is not None:
        added.append(PlannedTensor(ROTARY, "F32", tuple(factors.shape), lambda: factors))
    found += [TypedTensor(planned, GGMLQuantizationType[planned.dtype]) for planned in added]
    return found


def _typed(
    tensor: PlannedTensor, compression: Compression, linear: Linear | None, change: Callable[[Tensor], Tensor]
) -> TypedTensor:
    """Plan one tensor of the file.

    Args:
        tensor: dense tensor of the source under llama.cpp's name.
        compression: levels of the layers.
        linear: layer whose weight the tensor is, or None for any other tensor.
        change: function that converts values or packed rows to llama.cpp's.
    """
    if linear is not None and linear.path in compression.levels:
        blocks = compression.storage(linear.path)
        planned = replace(
            tensor,
            dtype="U8",
            shape=(linear.out_features, blocks.row_bytes(linear.in_features)),
            make=partial(_blocks, compression, linear.path, change),
            layer=linear.path,
        )
        return TypedTensor(planned, GGMLQuantizationType(blocks.number))
    stored, shape = "F32", tensor.shape
    if linear is not None:
        stored, shape = _PLAIN[tensor.dtype], (linear.out_features, linear.in_features)
    make = partial(_dense, tensor, _DTYPES[stored], linear, change)
    return TypedTensor(replace(tensor, dtype=stored, shape=shape, make=make), GGMLQuantizationType[stored])


def _blocks(compression: Compression, layer: str, change: Callable[[Tensor], Tensor]) -> Tensor:
    packed = compression.packed(layer)
    assert packed is not None
    return change(packed.tensors["blocks"].cpu())


def _dense(
    tensor: PlannedTensor, dtype: torch.dtype, linear: Linear | None, change: Callable[[Tensor], Tensor]
) -> Tensor:
    values = tensor.make().to(dtype)
    return change(values if linear is None else linear.turn(values))


def write_file(
    path: Path, tensors: Sequence[TypedTensor], target: Target, name: str, source: Path
) -> str | None:
    """Write metadata, tokenizer and tensors, with at most one tensor in memory.

    Args:
        path: path of the GGUF file.
        tensors: tensors in the order of the file.
        target: the model that is written.
        name: name of the model in the metadata.
        source: folder of the source model, which holds the tokenizer.

    Returns:
        The reason why the file has no tokenizer, or None if it has one.
    """
    writer = GGUFWriter(path, target.architecture)
    add_metadata(writer, target, name)
    lack = add_tokenizer(writer, source, target.config.vocab_size)
    for tensor in tensors:
        planned = tensor.planned
        bytes_each = _DTYPES[planned.dtype].itemsize if planned.dtype in _DTYPES else 1
        shape = (*planned.shape[:-1], planned.shape[-1] * bytes_each)
        writer.add_tensor_info(planned.name, shape, np.dtype(np.uint8), planned.bytes, tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.bytes())
    writer.close()
    return lack


def verify_file(path: Path, tensors: Sequence[TypedTensor]) -> int:
    """Read the file and compare every tensor's type and bytes with the plan.

    Returns:
        The number of bytes of all tensors.

    Raises:
        OSError: a tensor is missing, superfluous or different.
    """
    written = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    if set(written) != {tensor.planned.name for tensor in tensors}:
        raise OSError(f"{path} does not hold exactly the tensors that were written; export again")
    for tensor in tensors:
        found = written[tensor.planned.name]
        same = found.tensor_type == tensor.kind and np.array_equal(
            np.ascontiguousarray(found.data).view(np.uint8).ravel(), tensor.bytes().ravel()
        )
        if not same:
            raise OSError(f"{found.name} in {path} is not what was written; check the disk and export again")
    return sum(int(tensor.n_bytes) for tensor in written.values())
