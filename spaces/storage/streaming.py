"""The content of a safetensors file in pieces, so that writing it needs no second copy of the tensors."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

ELEMENT_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of one element of each type, by the name of the type in a safetensors file."""

_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}
"""Names of the tensor types in a safetensors file, in the order in which the file stores tensors of these types."""


def safetensors_pieces(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yield the bytes that `safetensors.torch.save` returns: the header, then one piece per tensor.

    Args:
        tensors: contiguous tensors in host memory by name; their types are unsigned 8-bit integers or 16-bit floats.
    """
    ordered = sorted(tensors, key=lambda name: (list(_NAMES).index(tensors[name].dtype), name))
    yield safetensors_header((name, _NAMES[tensors[name].dtype], tensors[name].shape) for name in ordered)
    for name in ordered:
        yield tensors[name].flatten().view(torch.uint8).numpy().data


def safetensors_header(
    tensors: Iterable[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return the bytes of a safetensors file before its tensors, which follow one after the other.

    Args:
        tensors: name, type as the format names it, and shape of each tensor, in the order of the file.
        metadata: texts by name that the file holds beside the tensors.
    """
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, dtype, shape in tensors:
        start, end = end, end + math.prod(shape) * ELEMENT_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
