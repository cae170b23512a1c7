"""Held-out figures of a model that was just written, beside those that its run has of it."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..evaluators.runner.numerics import EvaluationConfig
from ..search.jobs.measure import measure_model
from ..search.run.configuration import RunConfig
from ..spaces.model.dense_model import DenseModel
from .gguf.llama_cpp import measure_file

RELATIVE = 0.01
ABSOLUTE = 0.001
"""How far figures may lie apart, in nats per token: other kernels round otherwise, another model is further off."""

LLAMA_RELATIVE = 0.05
LLAMA_ABSOLUTE = 0.02
"""The same for llama.cpp, which rounds activations to 8 bits."""


def heldout_check(
    config: RunConfig, measured: Mapping[str, float], say: Callable[[str], None]
) -> Callable[[DenseModel | Path], Mapping[str, Any]]:
    """What measures a written model and refuses one that its run knows otherwise.

    It takes two passes over the held-out text, one of the dense model.

    Args:
        config: the run's configuration, which names text and numerics.
        measured: the run's held-out figures of this model, `kl` and `perplexity`; empty if it has none.
        say: is told before measuring, since it may take long.

    Returns:
        What takes the written model, or a GGUF file for llama.cpp, and gives the record's entry; it raises OSError if the
        figures differ.
    """

    def check(written: DenseModel | Path) -> Mapping[str, Any]:
        if not measured:
            return {"heldout_measured": None}
        settings = _here(config)
        say("measuring what was written on the held-out text; --no-measure skips it")
        try:
            if isinstance(written, Path):
                found, bounds = measure_file(settings, written, "heldout"), (LLAMA_RELATIVE, LLAMA_ABSOLUTE)
            else:
                found, bounds = measure_model(settings, written, "heldout"), (RELATIVE, ABSOLUTE)
        except (ValueError, ModuleNotFoundError) as error:
            raise _unmeasured(error) from error
        compare_figures(found, _comparable(settings, measured), *bounds)
        return {"heldout_measured": found}

    return check


def compare_figures(
    found: Mapping[str, float],
    known: Mapping[str, float],
    relative: float = RELATIVE,
    absolute: float = ABSOLUTE,
) -> None:
    """Compare figures of what was written with those of a run, perplexity by its logarithm.

    Raises:
        OSError: they differ by more than `relative` and `absolute` nats per token together.
    """
    for name, value in known.items():
        mine, theirs = _nats(name, found[name]), _nats(name, value)
        if not abs(mine - theirs) <= relative * abs(theirs) + absolute:
            raise OSError(
                f"the files have held-out {name} {found[name]:.6g}, the run has {value:.6g}, so nothing was exported; "
                "check that text, model, levels and releases are the run's"
            )


def _comparable(settings: RunConfig, measured: Mapping[str, float]) -> dict[str, float]:
    """Figures without that of a fitness which is no exact divergence."""
    return {name: value for name, value in measured.items() if name != "kl" or settings.fitness.name == "kl"}


def _nats(name: str, value: float) -> float:
    return math.log(value) if name == "perplexity" else value


def _here(config: RunConfig) -> RunConfig:
    """The configuration with this machine's own evaluation where it lacks the GPU of the machine that searched."""
    if "cuda" in str(config.evaluation.device) and not torch.cuda.is_available():
        return config.model_copy(update={"evaluation": EvaluationConfig()})
    return config


def _unmeasured(error: Exception) -> ValueError:
    return ValueError(f"what was written cannot be measured, so nothing was exported: {error}")
