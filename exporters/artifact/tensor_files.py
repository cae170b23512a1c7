"""Writing and verification of safetensors files, tensor by tensor, with only one tensor in memory while writing.

References:
    https://huggingface.co/docs/safetensors (layout: an 8-byte header length, a JSON header, the bytes of the tensors).
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ...spaces.storage.files import write_json
from ...spaces.storage.streaming import ELEMENT_BYTES, safetensors_header


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor that will be written.

    Attributes:
        name: key of the tensor in the file.
        dtype: type of the tensor as safetensors names it, for example `BF16`.
        shape: shape of the tensor.
        make: function that returns the tensor, with this type and shape, and can be called repeatedly.
        layer: path, in the source model, of the linear layer whose level the tensor holds; empty for other tensors.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]
    layer: str = ""

    @property
    def bytes(self) -> int:
        """The size of the tensor in bytes."""
        return math.prod(self.shape) * ELEMENT_BYTES[self.dtype]


def write_tensors(folder: Path, planned: Sequence[PlannedTensor], shard_bytes: int) -> int:
    """Write one file `model.safetensors`, or several shards with an index file.

    Args:
        folder: folder that gets the files.
        planned: tensors in the order in which they are written.
        shard_bytes: most bytes of tensors in one shard; a tensor that is larger gets a shard of its own.

    Returns:
        The size of all safetensors files in bytes, headers included.
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
    """Read every tensor from the disk and compare it, byte for byte, with another result of its `make`.

    Raises:
        OSError: a tensor in the files is missing, superfluous or different.
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
    """Return the bytes of all tensors in the safetensors files of a folder, without the headers of the files."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            total += path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
    return total


def _keys(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _shards(planned: Sequence[PlannedTensor], shard_bytes: int) -> list[list[PlannedTensor]]:
    """Split the tensors, in order, into shards of at most `shard_bytes` or of one tensor."""
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
    """Write a new safetensors file, making each tensor only when its turn comes."""
    header = safetensors_header(((t.name, t.dtype, t.shape) for t in planned), {"format": "pt"})
    with path.open("xb") as file:
        file.write(header)
        for tensor in planned:
            file.write(_raw(tensor.make()).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _raw(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor as a flat uint8 tensor on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
