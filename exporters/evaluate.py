"""What a profile or a model folder is worth: divergence and perplexity, and scores on tasks beside the dense model's.

A profile is scored without an export of it being written.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from ..evaluators.runner.numerics import EvaluationConfig
from ..evaluators.runner.whole_model import whole_model
from ..evaluators.tasks.harness import Harness, Score
from ..search.jobs.measure import Figures, measure_model, measure_profile, open_profile
from ..search.run.configuration import RunConfig
from ..search.run.machine import DTYPES, devices_of, free_memory, resolve
from ..spaces.model.checkpoint import Checkpoint
from ..spaces.model.dense_model import DenseModel
from ..spaces.profile_file import read_profile
from .artifact.compression import Compression
from .checkpoints.packed_checkpoint import open_model
from .figures import size
from .gguf.llama_cpp import FILE, measure_file
from .profiled_checkpoint import ProfiledCheckpoint


@dataclass(frozen=True)
class Compared:
    """A score, and the dense model's where it was asked for."""

    score: Score
    dense: Score | None

    def record(self) -> dict[str, Any]:
        """The same as JSON values; a figure that is not finite is None."""
        found = asdict(self.score) | {"value": finite(self.score.value)}
        if self.dense is not None:
            found |= {"dense": finite(self.dense.value), "dense_error": self.dense.error}
        return found


def evaluate_target(
    config: RunConfig, target: Path, run: Path, data: str, tasks: Sequence[str] = (), *, dense: bool = True
) -> tuple[Figures, list[Compared]]:
    """Figures on one data set and scores on tasks.

    Args:
        config: names the dense model, the text and the levels.
        target: a model folder, a GGUF file or a profile file.
        run: the run's folder; the level databases lie beside it.
        data: calibration, validation or heldout.
        tasks: task files of lm-eval, or names of tasks that it has.
        dense: score the dense model too.

    Raises:
        ModuleNotFoundError: tasks are given, and lm-eval is not installed.
        ValueError: target, configuration, data and tasks do not go together, or a whole model does not fit.
    """
    databases, trust = run.parent / "databases", config.trust_remote_code
    if (file := _gguf(target)) is not None:
        if tasks:
            raise ValueError(
                f"{file} is run by llama.cpp, which takes no tasks here; score the profile or an hf export"
            )
        return measure_file(config, file, data), []
    harness = Harness(tasks, trust_remote_code=trust) if tasks else None
    if target.is_dir():
        model = open_model(target, trust)
        figures = measure_model(config, DenseModel(model), data)
        return figures, compare_scores(config, model, harness, dense=dense) if harness else []
    units = read_profile(target).units
    figures = measure_profile(config, units, databases, data, run)
    if harness is None:
        return figures, []
    model = profile_checkpoint(config, units, databases, run)
    return figures, compare_scores(config, model, harness, dense=dense)


def _gguf(target: Path) -> Path | None:
    """The GGUF file that a target is or holds."""
    file = target / FILE if target.is_dir() else target
    return file if file.suffix == ".gguf" and file.exists() else None


def profile_checkpoint(
    config: RunConfig, units: Mapping[str, str], databases: Path, run: Path | None = None
) -> ProfiledCheckpoint:
    """The model of a profile, as an export of it would be read."""
    assembly, profile, refitted = open_profile(config, units, databases, run)
    compression = Compression(
        assembly.structure,
        refitted or assembly.database,
        assembly.space.assignment(profile),
        devices_of(assembly.config.evaluation)[0],
    )
    return ProfiledCheckpoint(assembly.checkpoint, compression, config.trust_remote_code)


def compare_scores(
    config: RunConfig, model: Checkpoint, harness: Harness, *, dense: bool = True
) -> list[Compared]:
    """What a model scores, and the configuration's; one of them is in memory at a time.

    Raises:
        ValueError: the configuration names several devices, or a model does not fit on the one.
    """
    source = DenseModel.open(config.model, trust_remote_code=config.trust_remote_code)
    evaluation = resolve(config, source).evaluation
    found = _scores(config, DenseModel(model), evaluation, harness)
    others = _scores(config, source, evaluation, harness) if dense else []
    known = {(score.task, score.metric): score for score in others}
    return [Compared(score, known.get((score.task, score.metric))) for score in found]


def only_device(evaluation: EvaluationConfig) -> torch.device:
    """Where a whole model goes.

    Raises:
        ValueError: there are several.
    """
    device, *more = devices_of(evaluation)
    if more:
        raise ValueError(
            f"tasks run on one device, not on {evaluation.device}; set evaluation.device={device}"
        )
    return device


def _scores(
    config: RunConfig, model: DenseModel, evaluation: EvaluationConfig, harness: Harness
) -> list[Score]:
    device = only_device(evaluation)
    dtype = DTYPES[evaluation.dtype]
    needed = model.parameters * dtype.itemsize
    if needed > (free := _free(device)):
        raise ValueError(
            f"tasks need the whole model, {size(needed)} in {evaluation.dtype}, and {size(free)} are free on "
            f"{device}; give evaluation.device or evaluation.dtype another value"
        )
    whole = whole_model(model.checkpoint, dtype=dtype, device=device)
    tokenizer = AutoTokenizer.from_pretrained(
        model.checkpoint.path, trust_remote_code=config.trust_remote_code
    )
    return harness.scores(whole, tokenizer, int(evaluation.micro_batch))


def _free(device: torch.device) -> int:
    """Bytes that a model may take: what is free, and what this process no longer uses."""
    kept = (
        torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        if device.type == "cuda"
        else 0
    )
    return free_memory(device) + kept


def finite(value: float) -> float | None:
    """A figure as JSON has it: None where it is not finite."""
    return value if math.isfinite(value) else None
