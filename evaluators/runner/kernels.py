"""Which kernels compute: chosen by rule, never by timing, so that the same bits come again."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


_ROOM = {
    "recompile_limit": 4096,
    "accumulated_recompile_limit": 4096,
    "fail_on_recompile_limit_hit": True,  # otherwise what comes later is not compiled and has other bits
}


@contextmanager
def fixed_kernels(device: torch.device) -> Iterator[None]:
    """Attention by the first kernel that can, on a GPU; room to compile every kind of block and loss.

    cuDNN's attention comes first: on an H200 it runs at 578 TFLOP/s (8,192 positions, 24 heads of 128), flash at
    301, and its rows do not depend on how many sequences there are. The cache of traced blocks is left out,
    because it does not know which attention was preferred.
    """
    with ExitStack() as settings:
        if device.type == "cuda":
            settings.enter_context(sdpa_kernel(_ATTENTION, set_priority=True))
        settings.enter_context(torch._dynamo.config.patch(_ROOM))
        settings.enter_context(torch._functorch.config.patch(enable_autograd_cache=False))
        settings.enter_context(warnings.catch_warnings())
        # Products of float32 are meant to be of float32.
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
        yield


@contextmanager
def backward_kernels(device: torch.device) -> Iterator[None]:
    """Attention whose backward pass gives the same bits every time; on a GPU the fused ones add in any order."""
    with ExitStack() as settings:
        if device.type == "cuda":
            settings.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function or module, compiled for each shape it is called with."""
    compile_it: Callable[..., Callable[..., Any]] = torch.compile
    return compile_it(function, dynamic=False, options={"deterministic": True})
