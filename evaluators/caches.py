"""Tensors that are kept while there is room: unpacked levels and the teacher's hidden states."""

from collections import OrderedDict
from collections.abc import Hashable

import torch
from torch import Tensor

from ..spaces.database import LevelDatabase


class LevelCache:
    """Unpacked levels on the device, the least recently used forgotten beyond `limit` bytes."""

    def __init__(self, database: LevelDatabase, device: torch.device, dtype: torch.dtype, limit: int) -> None:
        self.database = database
        self.device = device
        self.dtype = dtype
        self._kept = RecentTensors(limit)

    def get(self, layer: str, label: str) -> Tensor:
        """The weight (out, in) of `layer` at `label`."""
        if (weight := self._kept.get((layer, label))) is None:
            weight = self.database.load(layer, label, self.device).dense().to(self.dtype)
            self._kept.put((layer, label), weight)
        return weight


class RecentTensors:
    """Tensors by key, the least recently used forgotten beyond `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable) -> Tensor | None:
        """The tensor, now the most recently used, or None."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keep `tensor`, unless it alone is beyond the limit."""
        if tensor.nbytes > self.limit or key in self._kept:
            return
        self._kept[key] = tensor
        self.bytes += tensor.nbytes
        while self.bytes > self.limit:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes
