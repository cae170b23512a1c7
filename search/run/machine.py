"""The machine that a run uses, with its devices, numerics and memory, and the values that `auto` takes on it."""

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
    """Return the configuration with every `auto` replaced that can change the value of an evaluation.

    Only the memory limits may still be `auto` then.

    Args:
        config: configuration of the run.
        model: dense model of the run.

    Raises:
        ValueError: the device is not available, or a micro-batch has more tokens than the calibration text.
    """
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
    """Return the number of CPU cores that this process may use, or of all cores where the system does not tell."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def devices_of(evaluation: EvaluationConfig) -> list[torch.device]:
    """Return the devices that a resolved configuration names."""
    return [torch.device(name) for name in evaluation.device.split(",")]


def block_weights(structure: Structure) -> int:
    """Return the largest number of linear weights that any block has."""
    return max(
        sum(linear.in_features * linear.out_features for linear in block.linears)
        for block in structure.blocks
    )


def numerics(evaluation: EvaluationConfig) -> dict[str, Any]:
    """Return the versions, hardware and settings that decide the last bits of a value, by name.

    `evaluation` must be resolved.
    """
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
    """Return the number of free bytes on a GPU, or of main memory for any other device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
