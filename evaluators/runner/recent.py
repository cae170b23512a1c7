"""Tensors that are kept in host memory while there is room: the teacher's last hidden states."""

from collections import OrderedDict
from collections.abc import Hashable

import torch
from torch import Tensor


class RecentTensors:
    """Tensors by key, the least recently used forgotten beyond `limit` bytes.

    A GPU's tensors are copied to pinned memory, in order with whatever else its stream does.
    """

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
        place = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        self._kept[key] = place.copy_(tensor, non_blocking=True)
        self.bytes += tensor.nbytes
        while self.bytes > self.limit:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes
