"""Where a stage's time goes: the profiler's kernels (on the CPU its operators) sorted by what they do.

Kernels are told apart by name, so that the figures do not depend on how the evaluator is written; what no kernel
covers is `idle`: the host was late.
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
"""Kind to parts of lower-case names, the first kind that matches counts; all else is element-wise work and norms."""
OTHER = "norms, element-wise"
IDLE = "idle"


def kind_of(name: str) -> str:
    """What a kernel or operator of this name does."""
    lower = name.lower()
    return next((kind for kind, parts in KINDS.items() if any(p in lower for p in parts)), OTHER)


def by_kind(durations: Iterable[tuple[str, float]], wall: float) -> dict[str, float]:
    """Seconds by kind, of (name, seconds) pairs; what is missing to `wall` is idle."""
    found = dict.fromkeys([*KINDS, OTHER], 0.0)
    for name, seconds in durations:
        found[kind_of(name)] += seconds
    return found | {IDLE: max(wall - sum(found.values()), 0.0)}


@dataclass(frozen=True)
class Trace:
    """What was profiled.

    Attributes:
        kernels: name and seconds of kernels, on the CPU of operators without what they call.
        parts: name and seconds of the parts that the evaluator names itself.
    """

    kernels: list[tuple[str, float]]
    parts: list[tuple[str, float]]


class StageProfiler:
    """Given to `Bench.generation` as what stands around a stage; keeps the trace of each."""

    def __init__(self) -> None:
        self.traces: list[Trace] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Profile what runs inside."""
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
