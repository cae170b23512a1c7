"""What a configuration means on this machine: devices, numerics, memory, and every `auto`."""

import os
import platform
from typing import Any

import psutil
import torch
import transformers
from torch.utils._triton import has_triton

from ...evaluators.runner.launch import Pace
from ...evaluators.runner.numerics import EvaluationConfig
from ...spaces.model.dense_model import DenseModel
from ...spaces.model.structure import Structure
from .configuration import RunConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_LOGITS = 512 << 20


def resolve(config: RunConfig, model: DenseModel) -> RunConfig:
    """Replace every `auto` that decides a value by what it means on this machine."""
    evaluation = config.evaluation
    device = evaluation.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} is not available here; use evaluation.device=cpu")
    dtype = evaluation.dtype
    if dtype == "auto":
        stored = str(model.dtype).removeprefix("torch.")
        dtype = "float32" if device == "cpu" or stored not in DTYPES else stored  # type: ignore[assignment]
    length = config.data.length
    tokens = min(2048 if on_gpu else 1024, config.data.calibration.tokens)
    micro_batch = max(1, tokens // length) if evaluation.micro_batch == "auto" else evaluation.micro_batch
    if micro_batch * length > config.data.calibration.tokens:
        raise ValueError(
            f"a micro-batch of {micro_batch} sequences is more than the {config.data.calibration.tokens} calibration "
            "tokens; lower evaluation.micro_batch or raise data.calibration.tokens"
        )
    threads = cores() if evaluation.threads == "auto" else evaluation.threads
    chunk, compiled = evaluation.chunk, evaluation.compile
    if chunk == "auto":
        chunk = max(128, _LOGITS // (4 * model.structure.ends.head.out_features)) if on_gpu else 512
    if compiled == "auto":
        pace = Pace.of(
            block_weights(model.structure), micro_batch * length, torch.device(device.split(",")[0])
        )
        compiled = pace.compiled and has_triton()
    resolved = {
        "device": device,
        "dtype": dtype,
        "micro_batch": micro_batch,
        "threads": threads,
        "chunk": chunk,
        "compile": compiled,
    }
    return config.model_copy(update={"evaluation": evaluation.model_copy(update=resolved)})


def cores() -> int:
    """The number of CPU cores that this process may use; on systems that do not tell, all cores of the machine."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def devices_of(evaluation: EvaluationConfig) -> list[torch.device]:
    """The devices that a resolved configuration names."""
    return [torch.device(name) for name in evaluation.device.split(",")]


def block_weights(structure: Structure) -> int:
    """Weights of the largest block's linear layers."""
    return max(
        sum(linear.in_features * linear.out_features for linear in block.linears)
        for block in structure.blocks
    )


def numerics(evaluation: EvaluationConfig) -> dict[str, Any]:
    """Libraries and hardware that decide the last bits of a value."""
    cuda = evaluation.device.startswith("cuda")
    names = sorted({torch.cuda.get_device_name(device) for device in devices_of(evaluation) if cuda})
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hardware": ", ".join(names) if cuda else torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "threads": evaluation.threads,
        "micro_batch": evaluation.micro_batch,
        "dtype": evaluation.dtype,
    }


def free_memory(device: torch.device) -> int:
    """Bytes free on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
