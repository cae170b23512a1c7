"""CUDA graphs of functions of tensors: many small operations are recorded once, then replayed with one launch."""

import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]
"""A function that takes and returns tensors only. It is hashable, and equal functions compute the same."""


class Replays:
    """Calls functions of tensors, and on a GPU records those that are called again with the same shapes.

    A replay runs the same kernels on the same values in the same order, so its results equal those of a plain call
    bit for bit. On a CPU every call is a plain call. On a GPU the first call of a function with given shapes is a plain
    call, in which the function can also fill its caches. The second call is recorded, so that functions that are called
    only once are not recorded. The recordings of a device share a pool of memory. The pool lives as long as this
    object, with a copy of the arguments and results of each recording.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, Function | None] = {}
        self._places: dict[torch.device, tuple[Any, torch.cuda.Stream]] = {}

    def __call__(self, function: Function, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Compute `function(*tensors)`; the next call may overwrite the returned tensors.

        Args:
            function: function without side effects, whose result shapes follow from the shapes of its arguments.
                It is not recorded if it reads values on the host (`item`, boolean indices) or creates tensors from
                values on the host.
            *tensors: arguments of the function, at least one, all on one device.
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
        """Return a recording of the function, or the function itself if it cannot be recorded."""
        device = tensors[0].device
        stream = torch.cuda.stream(torch.cuda.current_stream(device))
        # A failed recording leaves its own stream as the current one, so the old one is restored here. An empty
        # recording causes a warning, which is made an error.
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
    """Return the properties in which a tensor must equal the recorded one, so that the recording can be replayed."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


class _Recording:
    """The CUDA graph of a function, with the memory of its arguments and of its results."""

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
