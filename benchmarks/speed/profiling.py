"""Division of a stage's time by kind of kernel, or by kind of operator on the CPU, from PyTorch's profiler.

Kernels are recognised by their names, so the figures do not depend on how the evaluator is written. Time without any
kernel is `idle`, when the device waits for the host.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

KINDS: dict[str, tuple[str, ...]] = {
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "transfer": ("memcpy htod", "memcpy dtoh", "memcpy pinned", "memcpy pageable"),
    "decode": ("decode", "unpack", "dequant", "bitwise", "shift", "index_kernel", "aten::index", "rshift"),
    "matrix products": (
        "gemm",
        "nvjet",
        "cutlass",
        "cublas",
        "splitk",
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
    ),
    "softmax and divergence": (
        "softmax",
        "diverg",
        "kl_",
        "reduce",
        "vecdot",
        "gather",
        "aten::exp",
        "entropy",
    ),
}
"""Parts of lower-case kernel names by kind. The first kind that matches counts; other names are of the kind `OTHER`."""
OTHER = "norms, element-wise"
IDLE = "idle"


def kind_of(name: str) -> str:
    """Return the kind of work that a kernel or operator of this name does."""
    lower = name.lower()
    return next((kind for kind, parts in KINDS.items() if any(p in lower for p in parts)), OTHER)


def by_kind(durations: Iterable[tuple[str, float]], wall: float) -> dict[str, float]:
    """Return seconds by kind, given name and seconds of every kernel; the rest of `wall` seconds is idle."""
    found = dict.fromkeys([*KINDS, OTHER], 0.0)
    for name, seconds in durations:
        found[kind_of(name)] += seconds
    return found | {IDLE: max(wall - sum(found.values()), 0.0)}


@dataclass(frozen=True)
class Trace:
    """The times of all kernels and parts of one stage.

    Attributes:
        kernels: name and seconds of every kernel, or on the CPU of every operator without the operators it calls.
        parts: name and seconds of the parts that the evaluator names with `record_function`.
    """

    kernels: list[tuple[str, float]]
    parts: list[tuple[str, float]]


class StageProfiler:
    """Profiler to pass to `Bench.generation` as `around`, which keeps the trace of every stage."""

    def __init__(self) -> None:
        self.traces: list[Trace] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Profile what runs in the context and keep its trace."""
        cuda = torch.cuda.is_available()
        with profile(
            activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda], acc_events=True
        ) as trace:
            yield
        device = "CUDA" if cuda else "CPU"
        rows = [row for row in trace.key_averages() if row.device_type.name == device]
        named = [row for row in rows if row.is_user_annotation]
        plain = [row for row in rows if not row.is_user_annotation]
        self.traces.append(
            Trace(
                [(r.key, (r.self_device_time_total if cuda else r.self_cpu_time_total) / 1e6) for r in plain],
                [(r.key, (r.device_time_total if cuda else r.cpu_time_total) / 1e6) for r in named],
            )
        )
