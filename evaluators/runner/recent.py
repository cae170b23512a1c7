"""Tensors that are kept in host memory while there is room, such as the teacher's last hidden states."""

from collections import OrderedDict
from collections.abc import Hashable

import torch
from torch import Tensor


class RecentTensors:
    """Tensors by key, of which the least recently used are deleted when all together exceed a limit.

    Tensors of a GPU are copied to pinned memory, in order with the other work of the GPU's stream.

    Args:
        limit: largest number of bytes that are kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable) -> Tensor | None:
        """Return the tensor of a key, which becomes the most recently used, or None if it is not kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keep a copy of a tensor, unless the tensor alone exceeds the limit or its key is kept already."""
        if tensor.nbytes > self.limit or key in self._kept:
            return
        place = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        self._kept[key] = place.copy_(tensor, non_blocking=True)
        self.bytes += tensor.nbytes
        while self.bytes > self.limit:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes
