"""Scores of the field that need no evaluation of a profile: what each level of each unit is predicted to cost.

| score | error of a level |
| --- | --- |
| `fisher` | second-order estimate of the divergence around the dense model, in nats (`evaluators/slopes/slopes.py`) |
| `nmse` | relative error of the layer's output, from the level database |
| `owl` | the block's outlier ratio, relative to the mean block's, times `nmse` |
| `influence` | the block's influence as in ShortGPT, relative to the mean block's, times `nmse` |
| `lamp` | LAMP scores of the weights removed, with the rounding of the others |
| `magnitude` | energy of the change relative to the weight's |

OWL and ShortGPT score blocks and know no levels: OWL gives a block with more outliers more weights, ShortGPT keeps a
block of more influence. Both are importances, so an importance multiplies what the level does to its layer. A unit
of several layers has the sum of their errors. A dropped branch counts as relative error 1 of each of its layers, with
two exceptions: `fisher` measures it, and `influence` takes the branch's own influence.
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
"""Unit name to label to error; what the dense model has is left out."""


def fisher(assembly: Assembly, tokens_NT: np.ndarray) -> UnitErrors:
    """Second-order estimate of the divergence in nats per token: the slopes around the dense model."""
    size = assembly.runner.micro_batch
    tokens = torch.split(torch.from_numpy(tokens_NT.astype(np.int64)), size)
    batches = [Batch(tokens_BT, size, (assembly.config.seed, i)) for i, tokens_BT in enumerate(tokens)]
    weights = assembly.evaluator().weights
    sums = level_slopes(assembly.runner, assembly.space, weights, DENSE, batches, FitnessConfig())
    return {unit: dict(row) for unit, row in sums.mean().second.items()}


def nmse(assembly: Assembly, tokens_NT: np.ndarray) -> UnitErrors:
    """Relative output errors of the level database."""
    del tokens_NT
    return unit_errors(assembly.space, assembly.database.errors())


def owl(assembly: Assembly, tokens_NT: np.ndarray) -> UnitErrors:
    """Layer errors weighted by the outlier ratios of the blocks."""
    importance = _relative(outlier_ratios(assembly.runner, tokens_NT))
    return _weighted(assembly, importance, lambda unit: _weight(unit, importance) * max(len(unit.modules), 1))


def influence(assembly: Assembly, tokens_NT: np.ndarray) -> UnitErrors:
    """Layer errors weighted by the influence of the blocks."""
    found = influences(assembly.runner, tokens_NT)
    blocks = [block["block"] for block in found]
    mean = sum(blocks) / len(blocks)
    return _weighted(assembly, _relative(blocks), lambda unit: found[unit.block][unit.branch] / mean)


def lamp(assembly: Assembly, tokens_NT: np.ndarray) -> UnitErrors:
    """LAMP scores of the weights removed."""
    del tokens_NT
    return _by_weight(assembly, lamp_error)


def magnitude(assembly: Assembly, tokens_NT: np.ndarray) -> UnitErrors:
    """Relative energy of the change."""
    del tokens_NT
    return _by_weight(assembly, lambda weight_OI, level_OI, label: magnitude_error(weight_OI, level_OI))


Proxy = Callable[[Assembly, np.ndarray], UnitErrors]
"""(assembly, calibration tokens (N, T)) to errors; N is a multiple of the micro-batch."""

PROXIES: Mapping[str, Proxy] = {
    "fisher": fisher,
    "nmse": nmse,
    "owl": owl,
    "influence": influence,
    "lamp": lamp,
    "magnitude": magnitude,
}
REVISION = 3
"""Raised whenever the same model, levels and text give other scores."""

READS_TEXT = frozenset({"fisher", "owl", "influence"})
"""The proxies whose errors depend on the tokens."""


def proxy_errors(name: str, assembly: Assembly, tokens_NT: np.ndarray) -> UnitErrors:
    """One score of every level of every unit; the levels must be built.

    Raises:
        ValueError: the score has no value for some unit.
    """
    found = PROXIES[name](assembly, tokens_NT)
    rows = layer_errors(assembly.space, found)
    return {
        unit.name: dict(zip(unit.index, row, strict=True))
        for unit, row in zip(assembly.space.units, rows, strict=True)
    }


def _weight(unit: Unit, importance: Sequence[float]) -> float:
    """The importance of a unit's block; that of the mean block for embeddings and head."""
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
    """Errors of every layer's levels from weights, summed over the layers of each unit."""
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
