"""The matrices that a block may be given, on its device when it runs: its dense weights and its levels.

Where they do not all fit they stream: from pinned host memory or from disk, packed, one block ahead.
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
"""(layer path, label)"""

DENSE = "dense"

_Stored = Packed | Tensor


@dataclass(frozen=True, slots=True)
class Residency:
    """Where blocks' matrices stay between visits; those of the other blocks stay on disk.

    Attributes:
        device: blocks whose matrices stay on the device, ready to use.
        host: blocks whose matrices stay in pinned host memory, packed.
    """

    device: frozenset[int]
    host: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class _Arrival:
    """Packed matrices on a device, there once `event` has passed."""

    stored: dict[Key, _Stored]
    event: torch.cuda.Event | None = None


class BlockWeights:
    """Dense weights and levels by block.

    Args:
        checkpoint: has the dense weights.
        structure: of the model.
        database: has the levels.
        dtype: of the weights that are given out.
        place: index of a block to its device.
        residency: what stays where; never changes a value.
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
        """What is wanted of every block in turn, as (out, in) matrices; what it gave before is let go.

        The next block's matrices travel while one is used.

        Args:
            wanted: of each block of the model, from the first on.
            backwards: give the last block's first.
        """
        order = list(range(len(wanted)))[:: -1 if backwards else 1]
        with ThreadPoolExecutor(1) as reader:
            arrivals: dict[int, Future[_Arrival]] = {}

            def begin(step: int) -> None:
                if step == len(order):
                    return
                index = order[step]
                if missing := [k for k in wanted[index] if k not in self._kept]:
                    # Not before the block ahead begins: the host is far ahead of a GPU, its memory would pile up.
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
        """A level of the embedding or the head; kept on the device."""
        if (layer, label) not in self._kept:
            packed = self.database.load(layer, label, device)
            self._kept[layer, label] = packed.dense().to(self._dtype)
        return self._kept[layer, label]

    def _fetch(self, index: int, keys: Sequence[Key], ahead: torch.cuda.Event | None) -> _Arrival:
        """Bring a block's matrices to its device once `ahead` has passed; on a GPU beside what it computes."""
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
        # Always a copy: a file's mapping is not aligned as the allocator's memory, and products may depend on it.
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
    """Passes when the device's current stream gets here; None on a CPU."""
    if device.type != "cuda":
        return None
    event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event
