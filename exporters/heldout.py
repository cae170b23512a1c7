"""Comparison of the held-out figures of a model that was just written with those that its run measured."""

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
"""Largest allowed difference of figures: a fraction of the run's figure plus an absolute part in nats per token.

Kernels that round differently stay within it; another model does not.
"""

LLAMA_RELATIVE = 0.05
LLAMA_ABSOLUTE = 0.02
"""The same tolerances for llama.cpp, which rounds activations to 8 bits."""


def heldout_check(
    config: RunConfig, measured: Mapping[str, float], say: Callable[[str], None]
) -> Callable[[DenseModel | Path], Mapping[str, Any]]:
    """Make the check that measures a written model and refuses it if its figures differ from those of the run.

    The check takes two passes over the held-out text, one of them with the dense model.

    Args:
        config: configuration of the run, which names text and numerics.
        measured: held-out figures of the model in the run, `kl` and `perplexity`; empty if there are none.
        say: function that gets a line of text before the measurement, which may take long.

    Returns:
        A function that takes the written model, or a GGUF file for llama.cpp, and returns the entry for the record. The
        function raises OSError if the figures differ, and ValueError if they cannot be measured.
    """

    def check(written: DenseModel | Path) -> Mapping[str, Any]:
        if not measured:
            return {"heldout_measured": None}
        settings = _here(config)
        say("measuring the written model on the held-out text; --no-measure skips this")
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
    """Compare the figures of a written model with those of its run; perplexities are compared by their logarithms.

    Args:
        found: figures of the written model, by name.
        known: figures in the run, by name; all of them are compared.
        relative: allowed difference as a fraction of the run's figure.
        absolute: allowed difference in nats per token, which is added to the relative one.

    Raises:
        OSError: a figure differs by more than both allowances together.
    """
    for name, value in known.items():
        mine, theirs = _nats(name, found[name]), _nats(name, value)
        if not abs(mine - theirs) <= relative * abs(theirs) + absolute:
            raise OSError(
                f"the files have held-out {name} {found[name]:.6g}, the run has {value:.6g}, so nothing was exported; "
                "check that text, model, levels and package versions are those of the run"
            )


def _comparable(settings: RunConfig, measured: Mapping[str, float]) -> dict[str, float]:
    """Return the run's figures, without the divergence if the run's fitness is not the exact divergence `kl`."""
    return {name: value for name, value in measured.items() if name != "kl" or settings.fitness.name == "kl"}


def _nats(name: str, value: float) -> float:
    """Convert a figure to nats per token."""
    return math.log(value) if name == "perplexity" else value


def _here(config: RunConfig) -> RunConfig:
    """Return the configuration, with the default evaluation settings if it names a GPU and this machine has none."""
    if "cuda" in str(config.evaluation.device) and not torch.cuda.is_available():
        return config.model_copy(update={"evaluation": EvaluationConfig()})
    return config


def _unmeasured(error: Exception) -> ValueError:
    """Return the error that refuses a model whose figures cannot be measured."""
    return ValueError(f"the written model cannot be measured, so nothing was exported: {error}")
