"""GGUF files: tensors in llama.cpp's types and names, written one after the other and compared when read back."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from torch import Tensor

from .compression import Compression
from .gguf_metadata import add_metadata, architecture, rotary_factors, row_order
from .gguf_names import tensor_names
from .gguf_tokenizer import add_tokenizer
from .tensor_files import PlannedTensor

_PLAIN = {"F32": "F32", "F16": "F16", "BF16": "BF16", "F64": "F32"}
"""Types of safetensors to those that llama.cpp has."""
_COMPUTED = ".rotary_emb.inv_freq"
"""Ends the names of buffers that old checkpoints hold."""
ROTARY = "rope_freqs.weight"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class TypedTensor:
    """One tensor of a GGUF file.

    Attributes:
        planned: its name there, its bytes as a tensor, and the layer whose level it holds.
        kind: llama.cpp's type.
    """

    planned: PlannedTensor
    kind: GGMLQuantizationType

    def bytes(self) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
        """(rows, bytes of a row), or the bytes of a vector."""
        tensor = self.planned.make().contiguous()
        return tensor.view(torch.uint8).numpy()


def store_blocks(compression: Compression, dense: PlannedTensor) -> list[PlannedTensor]:
    """A level in llama.cpp's own storage.

    Raises:
        ValueError: it is none of llama.cpp's types.
    """
    rows, inputs = dense.shape
    shape = (rows, compression.storage(dense.layer).row_bytes(inputs))
    return [replace(dense, dtype="U8", shape=shape, make=partial(_blocks, compression, dense.layer))]


def _blocks(compression: Compression, layer: str) -> Tensor:
    packed = compression.packed(layer)
    assert packed is not None
    return packed.tensors["blocks"].cpu()


def typed(tensors: Iterable[PlannedTensor], compression: Compression, config: Any) -> list[TypedTensor]:
    """Tensors under llama.cpp's names, rows in its order; vectors in float32.

    Args:
        tensors: those of `transformers`, levels as `store_blocks` gives them.
        compression: says which level a layer has.
        config: of the model that is written.

    Raises:
        ValueError: llama.cpp has no tensor of the name.
    """
    names = tensor_names(architecture(config), config.num_hidden_layers)
    ends = compression.structure.ends
    needless = {f"{ends.head.path}.weight"} if ends.tied else set()
    found = [
        _typed(tensor, compression, config, names)
        for tensor in tensors
        if not (tensor.name in needless or tensor.name.endswith(_COMPUTED))
    ]
    factors = rotary_factors(config)
    if factors is not None:
        planned = PlannedTensor(ROTARY, "F32", tuple(factors.shape), lambda: factors)
        found.append(TypedTensor(planned, GGMLQuantizationType.F32))
    return found


def _typed(
    tensor: PlannedTensor, compression: Compression, config: Any, names: Callable[[str], str]
) -> TypedTensor:
    name = names(tensor.name)
    order = row_order(config, tensor.name)
    if tensor.dtype == "U8":
        planned = replace(tensor, name=name, make=lambda: order(tensor.make()))
        return TypedTensor(planned, GGMLQuantizationType(compression.storage(tensor.layer).number))
    stored = "F32" if len(tensor.shape) == 1 else _PLAIN[tensor.dtype]
    planned = replace(tensor, name=name, dtype=stored, make=lambda: order(tensor.make().to(_DTYPES[stored])))
    return TypedTensor(planned, GGMLQuantizationType[stored])


def write_file(
    path: Path, tensors: Sequence[TypedTensor], config: Any, name: str, source: Path
) -> str | None:
    """Write metadata, tokenizer and tensors; no more than one tensor is in memory.

    Args:
        path: of the file.
        tensors: in their order.
        config: of the model that is written.
        name: of the model.
        source: folder that holds the tokenizer.

    Returns:
        Why there is no tokenizer, if there is none.
    """
    writer = GGUFWriter(path, architecture(config))
    add_metadata(writer, config, name)
    lack = add_tokenizer(writer, source, config.vocab_size)
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
    """Compare every tensor's type and bytes with what was meant.

    Returns:
        Bytes of the tensors.

    Raises:
        OSError: something differs.
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
