"""The weight matrices of the blocks, dense or at a level, brought to the device of a block when it runs.

Matrices that do not fit on the device stream to it, packed, from pinned host memory or from disk. Those of the next
block travel while one block runs.
"""

from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import record_function

from ...spaces.levels.packed import Packed
from ...spaces.model.checkpoint import Checkpoint
from ...spaces.model.structure import Linear, Structure
from ...spaces.storage.database import LevelDatabase

Key = tuple[str, str]
"""Path of a linear layer and label of its level."""

DENSE = "dense"

_Stored = Packed | Tensor


@dataclass(frozen=True, slots=True)
class Residency:
    """The places where the matrices of blocks stay between two uses; those of all other blocks stay on disk.

    Attributes:
        device: indices of the blocks whose matrices stay on the device, unpacked.
        host: indices of the blocks whose matrices stay in pinned host memory, packed.
    """

    device: frozenset[int]
    host: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class _Arrival:
    """Matrices on their way to a device.

    Attributes:
        stored: packed level, or dense weight (O, I), of every key.
        event: event after which the matrices are complete; None where they are complete already.
    """

    stored: dict[Key, _Stored]
    event: torch.cuda.Event | None = None


class BlockWeights:
    """Reads the weight matrices of one block after the other, dense or at a level.

    Args:
        checkpoint: checkpoint with the dense weights.
        structure: structure of the model.
        database: level database with the weights of every level.
        dtype: type of the matrices that are returned.
        place: function that returns the device of a block from its index.
        residency: places where the matrices of each block stay; they do not change any value.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        structure: Structure,
        database: LevelDatabase,
        dtype: torch.dtype,
        place: Callable[[int], torch.device],
        residency: Residency,
    ) -> None:
        self.residency = residency
        self.database = database
        self._checkpoint = checkpoint
        self._linears: dict[str, Linear] = {linear.path: linear for linear in structure.linears}
        self._dtype = dtype
        self._place = place
        self._kept: dict[Key, Tensor] = {}
        self._pinned: dict[Key, _Stored] = {}
        self._sides: dict[torch.device, torch.cuda.Stream] = {}

    def stream(
        self, wanted: Sequence[Collection[Key]], *, backwards: bool = False
    ) -> Generator[dict[Key, Tensor]]:
        """Yield the wanted matrices of every block in turn, and free those of the block before.

        The matrices of the next block travel to its device while one block is used.

        Args:
            wanted: wanted matrices of each block, in the order of the blocks in the model.
            backwards: whether to begin with the last block.

        Yields:
            Matrix (O, I) of every wanted key of one block, on the block's device.
        """
        order = list(range(len(wanted)))[:: -1 if backwards else 1]
        with ThreadPoolExecutor(1) as reader:
            arrivals: dict[int, Future[_Arrival]] = {}

            def begin(step: int) -> None:
                if step == len(order):
                    return
                index = order[step]
                if missing := [k for k in wanted[index] if k not in self._kept]:
                    # Fetched no earlier than the device begins the block before: the host is far ahead of a GPU, and
                    # fetched matrices would fill its memory.
                    ahead = _event(self._place(order[step - 1])) if step else None
                    arrivals[index] = reader.submit(self._fetch, index, missing, ahead)

            begin(0)
            for step, index in enumerate(order):
                arrival = arrivals.pop(index, None)
                with record_function("levels"):
                    found = self._unpacked(index, arrival.result()) if arrival else {}
                begin(step + 1)
                keys = wanted[index]
                weights = {key: found[key] if key in found else self._kept[key] for key in keys}
                del arrival, found
                yield weights
                weights.clear()

    def end(self, layer: str, label: str, device: torch.device) -> Tensor:
        """Return the weight (V, D) of the embedding or the head at a level; it stays on the device from then on."""
        if (layer, label) not in self._kept:
            packed = self.database.load(layer, label, device)
            self._kept[layer, label] = packed.dense().to(self._dtype)
        return self._kept[layer, label]

    def _fetch(self, index: int, keys: Sequence[Key], ahead: torch.cuda.Event | None) -> _Arrival:
        """Bring matrices of a block to its device once `ahead` has passed; a GPU goes on computing meanwhile."""
        if ahead is not None:
            ahead.synchronize()
        device = self._place(index)
        if device.type != "cuda":
            return _Arrival({key: self._read(key) for key in keys})
        if device not in self._sides:
            self._sides[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side = self._sides[device]
        with torch.cuda.device(device), torch.cuda.stream(side):
            stored = {key: _sent(self._pinned_copy(index, key), device) for key in keys}
            return _Arrival(stored, _event(device))

    def _pinned_copy(self, index: int, key: Key) -> _Stored:
        if key in self._pinned:
            return self._pinned[key]
        pinned = _pinned(self._read(key))
        if index in self.residency.host:
            self._pinned[key] = pinned
        return pinned

    def _read(self, key: Key) -> _Stored:
        layer, label = key
        if label != DENSE:
            return self.database.load(layer, label, torch.device("cpu"))
        tensor = self._checkpoint.tensor(f"{layer}.weight")
        # Always copied: memory mapped from a file is aligned otherwise than allocated memory, and the bits of products
        # may depend on the alignment.
        return self._linears[layer].turn(tensor).to(self._dtype, copy=True)

    def _unpacked(self, index: int, arrival: _Arrival) -> dict[Key, Tensor]:
        device = self._place(index)
        if arrival.event is not None:
            torch.cuda.current_stream(device).wait_event(arrival.event)
        found = {}
        for key, stored in arrival.stored.items():
            for tensor in _tensors(stored):
                if tensor.is_cuda:
                    tensor.record_stream(torch.cuda.current_stream(device))
            found[key] = stored if isinstance(stored, Tensor) else stored.dense().to(self._dtype)
            if index in self.residency.device:
                self._kept[key] = found[key]
        return found


def _tensors(stored: _Stored) -> list[Tensor]:
    return [stored] if isinstance(stored, Tensor) else list(stored.tensors.values())


def _each(stored: _Stored, function: Callable[[Tensor], Tensor]) -> _Stored:
    return function(stored) if isinstance(stored, Tensor) else stored.map(function)


def _pinned(stored: _Stored) -> _Stored:
    return _each(stored, Tensor.pin_memory)


def _sent(stored: _Stored, device: torch.device) -> _Stored:
    return _each(stored, lambda tensor: tensor.to(device, non_blocking=True))


def _event(device: torch.device) -> torch.cuda.Event | None:
    """Return an event that passes when the device's current stream reaches this point; None on a CPU."""
    if device.type != "cuda":
        return None
    event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event
