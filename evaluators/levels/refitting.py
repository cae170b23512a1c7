"""Refitting, which builds the levels of one profile again, for inputs that come through compressed layers.

A level of the database is built for inputs of the dense model. In the finished model the inputs x come through
compressed layers and differ from the inputs y that the layer was trained on. A refit goes through the layers in the
order in which they run and takes Hessians from x. Each layer compensates what the layers before it lost: W (y - x) and,
where the layer adds to the residual stream, the difference of that stream from the dense model's. The weight that is
compressed is W plus `CORRECTION` times the step to the least squares solution.

Measured on the quickstart model (held-out KL of uniform profiles, 16,384 tokens, without `RIDGE`):

| refit | gain |
| --- | --- |
| Hessians of x only | nothing to 1 % |
| half the step | 26 % at 2.5 bits, 49 % at 60 % sparsity |
| the whole step | 21 % at 2.5 bits, 46 % at 60 % sparsity |
| half the step, without the residual stream | 19 % |
| half the step, with states gathered once per block instead of once per layer | 9 % |

`RIDGE` gains 3 % of what is left at 2,048 tokens, and 5 % at 8,192 tokens.

Shapes: B sequences of a micro-batch, T positions, D hidden size, P positions of several sequences, O outputs of a
layer, I inputs of a layer.

References:
    Li et al., GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration, 2025.
    Zhang et al., Qronos: Correcting the Past by Shaping the Future in Post-Training Quantization, 2025.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from ...spaces.levels.builders import build_layers
from ...spaces.levels.cuda_graphs import Replays
from ...spaces.levels.layer_error import layer_errors
from ...spaces.levels.packed import Packed
from ...spaces.model.checkpoint import Checkpoint
from ...spaces.model.structure import Linear, Structure
from ...spaces.storage.database import Errors, LevelDatabase
from ..runner.loaded import LoadedBlock
from ..runner.runner import BlockRunner
from .building import CalibratedBuilderConfig, Labels, build_ends, part_of
from .calibration import CalibrationStates, add_gram, host_copy

REVISION = 1
"""Number that is raised whenever the same profile gives another refit than before."""

CORRECTION = 0.5
"""Part of the step to the least squares solution that is taken; the whole step overfits the calibration text."""

RIDGE = 3.0
"""Damping of the step when a layer has as many inputs as there are positions.

It is multiplied by inputs over positions, because what few positions say about many inputs is mostly chance.
"""

_NEAR = 0.05
"""Largest distance from 1 of the share of a layer's output that arrives in the residual stream."""


def refit_labels(assignment: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return the one label of every layer that an assignment compresses, by layer path."""
    return {path: (label,) for path, label in sorted(assignment.items()) if label not in ("dense", "drop")}


def refit_database(
    database: LevelDatabase,
    assignment: Mapping[str, str],
    runner: BlockRunner,
    tokens_NT: np.ndarray,
    config: CalibratedBuilderConfig,
    *,
    progress: Callable[[str], None] = lambda part: None,
) -> None:
    """Fill `database` with the levels of one profile; parts that are there already are not built again.

    Time: the calibration tokens pass each block twice for each set of layers that share an input, twice more (with
    fewer layers) for each set that adds to the residual stream, and twice at the end. Memory: the hidden states of all
    calibration tokens twice in host memory, one block on the device.

    Args:
        database: level database that the levels are written to, one label per layer.
        assignment: label of each layer by path; other layers are dense. `drop` is the label of all layers of a branch
            or of none.
        runner: block runner of the dense model.
        tokens_NT: calibration tokens; N is a multiple of the runner's micro-batch.
        config: builders and their settings.
        progress: function that is called with the name of the part of each finished block.
    """
    structure, labels = runner.structure, refit_labels(assignment)
    build_ends(database, labels, structure, runner.checkpoint, config)
    left = [
        block.index
        for block in structure.blocks
        if not database.has(part_of(block)) and any(linear.path in labels for linear in block.linears)
    ]
    if not left:
        return
    dense = CalibrationStates(runner, tokens_NT)
    runner.install_ends(_ends(database, structure, labels, runner.device))
    try:
        states = CalibrationStates(runner, tokens_NT)
    finally:
        runner.install_ends({})
    replays = Replays()
    for block in structure.blocks[: left[-1] + 1]:
        compressed = {linear.path: linear for linear in block.linears if linear.path in labels}
        with runner.block(block.index) as loaded:
            passage = Passage(loaded, block.dropped(assignment), dense, states)
            if compressed and not database.has(part_of(block)):
                database.write(
                    part_of(block),
                    *_refit_block(passage, compressed, labels, runner.checkpoint, config, replays),
                )
            for path in compressed:
                passage.weights[path] = database.load(path, labels[path][0], loaded.device).dense()
            passage.advance()
        progress(part_of(block))


def corrected(weight_OI: Tensor, hessian_II: Tensor, lag_OI: Tensor, damp: float) -> Tensor:
    """Compute the weight (O, I) in float32 that is compressed in place of a layer's dense weight.

    Let d be the loss of earlier layers that the layer has to compensate. The least squares solution of
    Q x = W x + d is Q = W + L H^-1. `CORRECTION` times the step L H^-1 is taken.

    Args:
        weight_OI: dense weight W of the layer.
        hessian_II: Hessian H, the sum of x x^T over positions.
        lag_OI: lag L, the sum of d x^T over positions.
        damp: part of the mean of H's diagonal that is added to the diagonal, for this solution only.
    """
    hessian = hessian_II.to(torch.float64, copy=True)
    hessian.diagonal().add_(damp * (float(hessian.diagonal().mean()) or 1.0))
    step_IO = torch.linalg.solve(hessian, lag_OI.double().T)
    aim_OI: Tensor = weight_OI.double() + CORRECTION * step_IO.T
    return aim_OI.float()


class Passage:
    """The hidden states of the dense model and of the compressed model before one block, which both are to pass.

    Args:
        loaded: loaded block that both models pass.
        dropped: kinds of the block's branches that the profile drops.
        dense: hidden states of the dense model before the block.
        states: hidden states of the compressed model before the block.

    Attributes:
        weights: weights (O, I) of the levels that are built so far, by layer path.
        positions: number of positions of all calibration sequences together.
    """

    def __init__(
        self,
        loaded: LoadedBlock,
        dropped: tuple[str, ...],
        dense: CalibrationStates,
        states: CalibrationStates,
    ) -> None:
        self.loaded = loaded
        self.weights: dict[str, Tensor] = {}
        self._dropped = dropped
        self._dense = dense
        self._states = states
        self.positions = sum(states_BTD.shape[:2].numel() for states_BTD in states)

    def stages(self) -> list[tuple[str, ...]]:
        """Return groups of layers that read the same tensor, as paths, in the order in which the layers run.

        Layers of dropped branches are left out.
        """
        self.loaded.install({}, self._dropped)
        _, inputs = self.loaded.record(next(iter(self._dense)))
        order = list(inputs)
        groups = [
            group for branch in self.loaded.block.branches for group in branch.groups if group[0] in inputs
        ]
        return sorted(groups, key=lambda group: order.index(group[0]))

    def silent_before(self, path: str, weight_OI: Tensor) -> tuple[str, ...] | None:
        """Return the branches to drop so that the block's output is the residual stream that a layer adds to.

        None is returned if the layer does not add its output to the stream unchanged. The test is that doubling the
        weight changes the block's output by the layer's output, which a norm or a factor after the layer prevents.

        Args:
            path: path of the layer.
            weight_OI: dense weight of the layer.
        """
        kinds = [branch.kind for branch in self.loaded.block.branches]
        (own,) = (b.kind for b in self.loaded.block.branches if any(n.path == path for n in b.linears))
        later = kinds[kinds.index(own) + 1 :]
        dense_BTD = next(iter(self._dense))
        self.loaded.install({}, later)
        once_BTD, inputs = self.loaded.record(dense_BTD)
        self.loaded.install({path: 2 * weight_OI.float()}, later)
        twice_BTD, _ = self.loaded.record(dense_BTD)
        given_BTO = inputs[path].float() @ weight_OI.float().T
        if given_BTO.shape != once_BTD.shape:
            return None
        share = ((twice_BTD.float() - once_BTD.float()) * given_BTO).sum() / given_BTO.square().sum()
        return (own, *later) if abs(float(share) - 1) < _NEAR else None

    def gather(
        self, weights: Mapping[str, Tensor], silent: tuple[str, ...] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the Hessian and the lags of layers that read the same x, as sums over all positions.

        The output that a layer has to compensate is d. It is W (y - x) for the inputs y of the dense model. With
        `silent`, the difference of the two residual streams that the layer adds to (the dense model's minus the
        compressed model's) is added to d.

        Args:
            weights: dense weights (O, I) of the layers by path.
            silent: branches without which the block's output is the residual stream, as `silent_before` returns them.

        Returns:
            Hessian (I, I), the sum of x x^T; and the lag (O, I) of each layer by path, the sum of d x^T. All float32.
        """
        path, device = next(iter(weights)), self.loaded.device
        hessian_II: Tensor | None = None
        lags = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
        for dense_BTD, states_BTD in zip(self._dense, self._states, strict=True):
            y_PI, dense_PD = self._seen(dense_BTD.to(device), path, {}, (), silent)
            x_PI, states_PD = self._seen(states_BTD.to(device), path, self.weights, self._dropped, silent)
            hessian_II = add_gram(hessian_II, x_PI)
            shift_PI = y_PI.float() - x_PI.float()
            for name, weight_OI in weights.items():
                lag_PO = shift_PI @ weight_OI.float().T
                if dense_PD is not None and states_PD is not None:
                    lag_PO += dense_PD.float() - states_PD.float()
                lags[name].addmm_(lag_PO.T, x_PI.float())
        assert hessian_II is not None
        return hessian_II, lags

    def _seen(
        self,
        states_BTD: Tensor,
        path: str,
        weights: Mapping[str, Tensor],
        dropped: tuple[str, ...],
        silent: tuple[str, ...] | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the block and return the inputs (P, I) of the layer at `path`, and the stream that the layer adds to.

        The stream (P, D) is the block's output without the branches in `silent`, or None if `silent` is None.
        """
        self.loaded.install(weights, dropped)
        inputs_PI = self.loaded.record(states_BTD)[1][path].flatten(0, -2)
        if silent is None:
            return inputs_PI, None
        self.loaded.install(weights, {*dropped, *silent})
        return inputs_PI, self.loaded.record(states_BTD)[0].flatten(0, -2)

    def advance(self) -> None:
        """Replace the hidden states of both models by those after the block."""
        self.loaded.install({})
        self._dense.advance(self.loaded)
        self.loaded.install(self.weights, self._dropped)
        self._states.advance(self.loaded)


def _refit_block(
    passage: Passage,
    compressed: Mapping[str, Linear],
    labels: Labels,
    checkpoint: Checkpoint,
    config: CalibratedBuilderConfig,
    replays: Replays,
) -> tuple[dict[str, dict[str, Packed]], Errors]:
    """Build the levels of a block's layers, one stage of the block after the other.

    Returns:
        The levels, in host memory, and their errors on the inputs of the compressed model, by layer path and label.
    """
    device = passage.loaded.device
    levels: dict[str, dict[str, Packed]] = {}
    errors: Errors = {}
    for stage in passage.stages():
        weights = {
            path: compressed[path].turn(checkpoint.tensor(f"{path}.weight").to(device))
            for path in stage
            if path in compressed
        }
        if not weights:
            continue
        silent = passage.silent_before(*next(iter(weights.items()))) if len(stage) == 1 else None
        hessian_II, lags = passage.gather(weights, silent)
        damp = max(config.damp, RIDGE * len(hessian_II) / passage.positions)
        aims = {path: corrected(weight, hessian_II, lags[path], damp) for path, weight in weights.items()}
        built = build_layers(aims, hessian_II, labels, config=config, dtype=checkpoint.dtype, replays=replays)
        for path, found in built.items():
            values = {label: packed.dense() for label, packed in found.items()}
            (passage.weights[path],) = values.values()
            errors[path] = layer_errors(weights[path], values, hessian_II)
            levels[path] = {label: packed.map(host_copy) for label, packed in found.items()}
    return levels, errors


def _ends(
    database: LevelDatabase, structure: Structure, labels: Labels, device: torch.device
) -> dict[str, Tensor]:
    """Return the compressed weight of the embedding by path, if the profile has one; the head is not needed here."""
    path = structure.ends.embedding.path
    return {path: database.load(path, labels[path][0], device).dense()} if path in labels else {}
