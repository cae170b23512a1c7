"""The choice of kernels, made by rule and never by timing, so that every run has the same bits."""

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
    "fail_on_recompile_limit_hit": True,  # otherwise later shapes would run uncompiled, with other bits
}


@contextmanager
def fixed_kernels(device: torch.device) -> Iterator[None]:
    """Fix the choice of attention kernels on a GPU, and let all blocks and losses be compiled, while the context lasts.

    The first kernel in a fixed order that supports the inputs computes the attention. The order begins with cuDNN's
    kernel. On an H200 this kernel runs at 578 TFLOP/s (8,192 positions, 24 heads of 128), and flash attention at 301.
    Its rows do not depend on the number of sequences. The cache of traced blocks is not used, because its key does not
    include the order of the kernels.
    """
    with ExitStack() as settings:
        if device.type == "cuda":
            settings.enter_context(sdpa_kernel(_ATTENTION, set_priority=True))
        settings.enter_context(torch._dynamo.config.patch(_ROOM))
        settings.enter_context(torch._functorch.config.patch(enable_autograd_cache=False))
        settings.enter_context(warnings.catch_warnings())
        # The warning recommends TensorFloat32, but products of float32 must have the precision of float32.
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
        yield


@contextmanager
def backward_kernels(device: torch.device) -> Iterator[None]:
    """Use attention whose backward pass gives the same bits every time, while the context lasts.

    The fused kernels of a GPU add up gradients in an order that varies.
    """
    with ExitStack() as settings:
        if device.type == "cuda":
            settings.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function or module in a form that is compiled for each shape it is called with."""
    compile_it: Callable[..., Callable[..., Any]] = torch.compile
    return compile_it(function, dynamic=False, options={"deterministic": True})
