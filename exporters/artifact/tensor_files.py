"""Writes safetensors files tensor by tensor: no more than one tensor is in memory.

References:
    https://huggingface.co/docs/safetensors (an 8-byte header length, a JSON header, the tensors' bytes).
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ...spaces.storage.files import write_json

_ELEMENT_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor that will be written.

    Attributes:
        name: its key in the file.
        dtype: as safetensors names it, for example `BF16`.
        shape: shape of the tensor.
        make: gives the tensor, of this dtype and shape, whenever it is called.
        layer: path, in the source model, of the linear layer whose level it holds; empty for other tensors.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]
    layer: str = ""

    @property
    def bytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * _ELEMENT_BYTES[self.dtype]


def write_tensors(folder: Path, planned: Sequence[PlannedTensor], shard_bytes: int) -> int:
    """Write `model.safetensors`, or shards of at most `shard_bytes` (or one tensor) and their index.

    Returns:
        Bytes of the safetensors files.
    """
    shards = _shards(planned, shard_bytes)
    count = len(shards)
    names = (
        ["model.safetensors"]
        if count == 1
        else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    )
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard)
    if count > 1:
        places = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": sum(t.bytes for t in planned)}, "weight_map": places}
        write_json(folder / "model.safetensors.index.json", index)
    return sum((folder / name).stat().st_size for name in names)


def verify_tensors(folder: Path, planned: Iterable[PlannedTensor]) -> None:
    """Read every tensor back and compare it, byte for byte, with what `make` gives again.

    Raises:
        OSError: a tensor is missing, superfluous or different.
    """
    places = {name: path for path in sorted(folder.glob("*.safetensors")) for name in _keys(path)}
    expected = list(planned)
    if set(places) != {tensor.name for tensor in expected}:
        raise OSError(f"{folder} does not hold exactly the tensors that were written; export again")
    for tensor in expected:
        with safe_open(places[tensor.name], framework="pt") as file:
            written = file.get_tensor(tensor.name)
        meant = tensor.make()
        if (
            written.dtype != meant.dtype
            or written.shape != meant.shape
            or not torch.equal(_raw(written), _raw(meant))
        ):
            raise OSError(
                f"{tensor.name} in {places[tensor.name]} is not what was written; check the disk and export again"
            )


def tensor_bytes(folder: Path) -> int:
    """Bytes of the tensors in the safetensors files of a folder: what their sizes leave besides the headers."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            total += path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
    return total


def _keys(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _shards(planned: Sequence[PlannedTensor], shard_bytes: int) -> list[list[PlannedTensor]]:
    shards: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in planned:
        if shards[-1] and size + tensor.bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.bytes
    return shards


def _write_file(path: Path, planned: Sequence[PlannedTensor]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in planned:
        offsets = [start, start + tensor.bytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        start = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in planned:
            file.write(_raw(tensor.make()).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _raw(tensor: Tensor) -> Tensor:
    """The tensor's bytes, flat."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
