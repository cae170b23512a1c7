"""The content of a safetensors file in pieces, so that writing it needs no second copy of the tensors."""

import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}
"""Names of the tensor types in a safetensors file, in the order in which the file stores tensors of these types."""


def safetensors_pieces(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yield the bytes that `safetensors.torch.save` returns: the header, then one piece per tensor.

    Args:
        tensors: contiguous tensors in host memory by name; their types are unsigned 8-bit integers or 16-bit floats.
    """
    ordered = sorted(tensors, key=lambda name: (list(_NAMES).index(tensors[name].dtype), name))
    places, end = {}, 0
    for name in ordered:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        places[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    header = json.dumps(places, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    yield len(header).to_bytes(8, "little") + header
    for name in ordered:
        yield tensors[name].flatten().view(torch.uint8).numpy().data
