"""Many small operations at the price of one launch: recorded once as a CUDA graph, then replayed."""

import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]
"""A function of tensors only; it is hashable, and equal functions compute the same."""


class Replays:
    """Calls functions of tensors; on a GPU it records those that come again with the same shapes.

    The same kernels run on the same values in the same order, so the bits are those of a plain call, which is all
    that happens on a CPU. The first call of a kind only runs (and makes whatever is made once), the second is
    recorded, so what comes once is never recorded. Recordings of a device share a pool of memory; it is kept, with a
    copy of each one's arguments and results, for as long as this object lives.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, Function | None] = {}
        self._places: dict[torch.device, tuple[Any, torch.cuda.Stream]] = {}

    def __call__(self, function: Function, *tensors: Tensor) -> tuple[Tensor, ...]:
        """`function(*tensors)`; what it returns is overwritten by the next call.

        Args:
            function: changes nothing outside itself. Its shapes follow from those of its arguments. One that
                looks at values on the host (`item`, boolean indices) or makes tensors from them is not recorded.
            tensors: its arguments, at least one, on one device.
        """
        if not tensors[0].is_cuda:
            return function(*tensors)
        kind = (function, *map(_form, tensors))
        if kind not in self._known:
            self._known[kind] = None
            return function(*tensors)
        if self._known[kind] is None:
            self._known[kind] = self._record(function, tensors)
        again = self._known[kind]
        assert again is not None
        return again(*tensors)

    def _record(self, function: Function, tensors: tuple[Tensor, ...]) -> Function:
        """What replays the function, or the function itself if it does what cannot be recorded."""
        device = tensors[0].device
        stream = torch.cuda.stream(torch.cuda.current_stream(device))
        # A recording that fails leaves its own stream the current one; one that is empty is warned of.
        with torch.cuda.device(device), stream, warnings.catch_warnings():
            warnings.filterwarnings("error", message="The CUDA Graph is empty")
            if device not in self._places:
                own = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
                self._places[device] = torch.cuda.graph_pool_handle(), own
            try:
                return _Recording(function, tensors, *self._places[device])
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, UserWarning):
                return function


def _form(tensor: Tensor) -> Hashable:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


class _Recording:
    """A function's graph, the memory it reads its arguments from, and that of its results."""

    def __init__(
        self, function: Function, tensors: tuple[Tensor, ...], pool: Any, stream: torch.cuda.Stream
    ) -> None:
        self._inputs = [tensor.clone() for tensor in tensors]
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._outputs = function(*self._inputs)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        for own, given in zip(self._inputs, tensors, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._outputs
