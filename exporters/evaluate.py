"""Evaluation of a profile or an exported model: divergence, perplexity, and scores on tasks beside the dense model's.

No export has to be written to evaluate a profile.
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
    """A score of a model on a task, beside the dense model's score.

    Attributes:
        score: score of the evaluated model.
        dense: score of the dense model on the same task and metric; None if it was not computed.
    """

    score: Score
    dense: Score | None

    def record(self) -> dict[str, Any]:
        """Return both scores as JSON values; a value that is not finite becomes None."""
        found = asdict(self.score) | {"value": finite(self.score.value)}
        if self.dense is not None:
            found |= {"dense": finite(self.dense.value), "dense_error": self.dense.error}
        return found


def evaluate_target(
    config: RunConfig, target: Path, run: Path, data: str, tasks: Sequence[str] = (), *, dense: bool = True
) -> tuple[Figures, list[Compared]]:
    """Evaluate a profile or a model on one set of text and on tasks.

    Args:
        config: configuration of the run, which names the dense model, the text and the levels.
        target: path of a model folder, a GGUF file, a folder with a GGUF file, or a profile file.
        run: folder of the run; the level databases lie beside it.
        data: name of the set of text: `calibration`, `validation` or `heldout`.
        tasks: paths of lm-eval task files, or names of tasks that lm-eval has.
        dense: whether to score the dense model on the tasks too.

    Returns:
        The figures on the text, such as divergence and perplexity, and the scores on the tasks (empty without tasks).

    Raises:
        ModuleNotFoundError: tasks are given but lm-eval is not installed, or a GGUF file but not llama-cpp-python.
        ValueError: target, configuration, data and tasks do not fit together, or a whole model exceeds the memory.
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
    """Return the GGUF file that a target is or holds, or None if there is none."""
    file = target / FILE if target.is_dir() else target
    return file if file.suffix == ".gguf" and file.exists() else None


def profile_checkpoint(
    config: RunConfig, units: Mapping[str, str], databases: Path, run: Path | None = None
) -> ProfiledCheckpoint:
    """Open the model of a profile as if an export of the profile were read.

    Args:
        config: configuration of the run, which names the dense model and the levels.
        units: labels of the profile by unit name, as a profile file gives them.
        databases: folder of the level databases.
        run: folder of the run, for refitted levels that were kept; None uses the original levels.

    Raises:
        ValueError: a level is not in the database, or the profile belongs to another space.
    """
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
    """Score a model on tasks, and the configuration's dense model too; only one of them is in memory at a time.

    Args:
        config: configuration of the run, which names the dense model and the device.
        model: checkpoint of the model to score.
        harness: tasks with their documents.
        dense: whether to score the dense model too.

    Raises:
        ValueError: the configuration names several devices, or a model does not fit in the memory of the device.
    """
    source = DenseModel.open(config.model, trust_remote_code=config.trust_remote_code)
    evaluation = resolve(config, source).evaluation
    found = _scores(config, DenseModel(model), evaluation, harness)
    others = _scores(config, source, evaluation, harness) if dense else []
    known = {(score.task, score.metric): score for score in others}
    return [Compared(score, known.get((score.task, score.metric))) for score in found]


def only_device(evaluation: EvaluationConfig) -> torch.device:
    """Return the device for a whole model.

    Raises:
        ValueError: the configuration names several devices.
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
    """Load a whole model and score it on tasks, or refuse a model that does not fit in the free memory."""
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
    """Return the bytes that a model may take: the free memory and what PyTorch has reserved but does not use."""
    kept = (
        torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        if device.type == "cuda"
        else 0
    )
    return free_memory(device) + kept


def finite(value: float) -> float | None:
    """Return the value, or None if the value is not finite, since JSON has no such numbers."""
    return value if math.isfinite(value) else None
