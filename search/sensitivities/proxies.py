"""Scores from the literature that predict the error of each level of each unit without evaluating a profile.

| score | error of a level |
| --- | --- |
| `fisher` | second-order estimate of the divergence around the dense model, in nats (`evaluators/slopes/slopes.py`) |
| `nmse` | relative error of the layer's output, from the level database |
| `owl` | `nmse` times the outlier ratio of the block, relative to the mean of all blocks |
| `influence` | `nmse` times the influence of the block as in ShortGPT, relative to the mean of all blocks |
| `lamp` | sum of the LAMP scores of the weights removed, and of the rounding of the others |
| `magnitude` | squared norm of the change of the weight, relative to that of the weight |

OWL and ShortGPT score blocks and do not distinguish levels. OWL keeps more weights in a block with more outliers, and
ShortGPT keeps blocks of more influence. Both ratios say how important a block is, so here they multiply the error of
the level. A unit of several layers has the sum of their errors. A dropped branch counts as relative error 1 of each of
its layers, except that `fisher` computes its error like that of any level, and `influence` takes the branch's own
influence.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ...evaluators.fitness import FitnessConfig
from ...evaluators.levels.activations import influences, outlier_ratios
from ...evaluators.levels.magnitudes import lamp_error, magnitude_error
from ...evaluators.slopes.batches import Batch
from ...evaluators.slopes.slopes import level_slopes
from ...spaces.space import DENSE
from ...spaces.unit import Unit
from ..methods.dp import layer_errors
from ..run.assembly import Assembly
from ..run.goals import unit_errors

UnitErrors = dict[str, dict[str, float]]
"""Error by unit name and label, without the levels of the dense model."""


def fisher(assembly: Assembly, tokens_NT: np.ndarray) -> UnitErrors:
    """Compute the second-order estimate of the divergence of each level from the dense model, in nats per token."""
    size = assembly.runner.micro_batch
    tokens = torch.split(torch.from_numpy(tokens_NT.astype(np.int64)), size)
    batches = [Batch(tokens_BT, size, (assembly.config.seed, i)) for i, tokens_BT in enumerate(tokens)]
    weights = assembly.evaluator().weights
    sums = level_slopes(assembly.runner, assembly.space, weights, DENSE, batches, FitnessConfig())
    return {unit: dict(row) for unit, row in sums.mean().second.items()}


def nmse(assembly: Assembly, tokens_NT: np.ndarray) -> UnitErrors:
    """Return the relative output errors of the level database, summed over the layers of each unit."""
    del tokens_NT
    return unit_errors(assembly.space, assembly.database.errors())


def owl(assembly: Assembly, tokens_NT: np.ndarray) -> UnitErrors:
    """Compute the layer errors times the outlier ratio of the block, relative to the mean ratio of all blocks."""
    importance = _relative(outlier_ratios(assembly.runner, tokens_NT))
    return _weighted(assembly, importance, lambda unit: _weight(unit, importance) * max(len(unit.modules), 1))


def influence(assembly: Assembly, tokens_NT: np.ndarray) -> UnitErrors:
    """Compute the layer errors times the influence of the block, relative to the mean influence of all blocks."""
    found = influences(assembly.runner, tokens_NT)
    blocks = [block["block"] for block in found]
    mean = sum(blocks) / len(blocks)
    return _weighted(assembly, _relative(blocks), lambda unit: found[unit.block][unit.branch] / mean)


def lamp(assembly: Assembly, tokens_NT: np.ndarray) -> UnitErrors:
    """Compute for each level of each unit the sum of LAMP scores that `lamp_error` defines, from weights alone."""
    del tokens_NT
    return _by_weight(assembly, lamp_error)


def magnitude(assembly: Assembly, tokens_NT: np.ndarray) -> UnitErrors:
    """Compute the squared norm of the change of each layer's weight, relative to that of the weight."""
    del tokens_NT
    return _by_weight(assembly, lambda weight_OI, level_OI, label: magnitude_error(weight_OI, level_OI))


Proxy = Callable[[Assembly, np.ndarray], UnitErrors]
"""A function of an assembled run and calibration tokens (N, T) that returns errors.

N is a multiple of the micro-batch.
"""

PROXIES: Mapping[str, Proxy] = {
    "fisher": fisher,
    "nmse": nmse,
    "owl": owl,
    "influence": influence,
    "lamp": lamp,
    "magnitude": magnitude,
}
REVISION = 3
"""Revision of the scores, raised whenever the same model, levels and text give other scores."""

READS_TEXT = frozenset({"fisher", "owl", "influence"})
"""Names of the scores that depend on the calibration tokens."""


def proxy_errors(name: str, assembly: Assembly, tokens_NT: np.ndarray) -> UnitErrors:
    """Compute one score of every level of every unit.

    Args:
        name: name of the score, a key of `PROXIES`.
        assembly: assembled run whose levels are built.
        tokens_NT: calibration tokens; N is a multiple of the micro-batch.

    Raises:
        ValueError: the score has no value for some level.
    """
    found = PROXIES[name](assembly, tokens_NT)
    rows = layer_errors(assembly.space, found)
    return {
        unit.name: dict(zip(unit.index, row, strict=True))
        for unit, row in zip(assembly.space.units, rows, strict=True)
    }


def _weight(unit: Unit, importance: Sequence[float]) -> float:
    """Return the importance of a unit's block, or the mean importance 1 for embeddings and head."""
    return importance[unit.block] if unit.block >= 0 else 1.0


def _relative(ratios: Sequence[float]) -> list[float]:
    mean = sum(ratios) / len(ratios)
    return [ratio / mean if mean else 1.0 for ratio in ratios]


def _weighted(
    assembly: Assembly, importance: Sequence[float], dropped: Callable[[Unit], float]
) -> UnitErrors:
    errors = unit_errors(assembly.space, assembly.database.errors())
    return {
        unit.name: {label: _weight(unit, importance) * error for label, error in errors[unit.name].items()}
        | ({"drop": dropped(unit)} if unit.droppable else {})
        for unit in assembly.space.units
    }


def _by_weight(assembly: Assembly, error: Callable[[Tensor, Tensor, str], float]) -> UnitErrors:
    """Compute the errors of all levels from weights alone, summed over the layers of each unit."""
    device, structure = assembly.runner.device, assembly.structure
    linears = {linear.path: linear for linear in (*structure.linears, *structure.ends.linears)}
    errors: UnitErrors = {}
    for path, labels in assembly.labels.items():
        weight_OI = linears[path].turn(assembly.checkpoint.tensor(f"{path}.weight").to(device))
        errors[path] = {
            label: error(weight_OI, assembly.database.load(path, label, device).dense(), label)
            for label in labels
        }
    return unit_errors(assembly.space, errors)
