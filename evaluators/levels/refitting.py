"""Refitting: one profile's levels made anew, every layer behind the compressed layers that feed it.

A level of the database is made for inputs of the dense model. In the finished model the inputs x come through
compressed layers and are not those y that the layer was trained on. A refit walks through the model in the order
in which its layers run, takes Hessians from x, and lets each layer make good what the layers before it lost: W (y - x)
and, where it adds to the residual stream, what that stream lacks of the dense model's. The weight that is compressed
is W plus `CORRECTION` times the step to the least squares solution.

Measured on the quickstart model (held-out KL of uniform profiles, 16,384 tokens, without `RIDGE`): Hessians of x alone gain nothing to 1 %; the half
step 26 % at 2.5 bits and 49 % at 60 % sparsity; the whole step less (21 % and 46 %), as does half the step without
the residual stream (19 %) or with one look at each block instead of at each layer (9 %). `RIDGE` gains 3 % more of
what is left at 2,048 tokens and 5 % at 8,192.

Shapes: B micro-batch, T positions, D hidden, P positions of several sequences, O outputs, I inputs.

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
from ..runner.installing import dropped_kinds
from ..runner.loaded import LoadedBlock
from ..runner.runner import BlockRunner
from .building import CalibratedBuilderConfig, Labels, build_ends, part_of
from .calibration import CalibrationStates, add_gram, host_copy

REVISION = 1
"""Raised whenever the same profile gives another refit than before."""

CORRECTION = 0.5
"""Part of the step to the least squares solution that is taken; the whole of it fits the calibration text."""

RIDGE = 3.0
"""Damping of the step, times inputs over positions: what few positions say of many inputs is mostly chance."""

_NEAR = 0.05
"""How near to 1 the share of a layer's output must be that arrives in the stream."""


def refit_labels(assignment: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The one label of every layer that an assignment compresses."""
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
    """Fill `database` with the levels of one profile; parts that are there already are not made again.

    Time: per block two passes of the calibration tokens for each set of layers that share an input, and two more.
    Memory: the hidden states of all calibration tokens twice in host memory, one block on the device.

    Args:
        database: where the levels go, one label a layer.
        assignment: layer path to label; what is not named is dense, `drop` names whole branches.
        runner: runs the dense model block by block.
        tokens_NT: calibration tokens; N a multiple of the runner's micro-batch.
        config: builders and their settings.
        progress: called with each block's part.
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
            passage = Passage(loaded, dropped_kinds(block, assignment), dense, states)
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
    """The weight (float32) that is compressed in place of a layer's own, so that it makes good what others lost.

    The least squares solution of W x + d = Q x, for what is to be made good d, is W plus L H^-1 with H the sum of
    x x^T and L that of d x^T; `CORRECTION` of that step is taken.

    Args:
        weight_OI: the layer's dense weight W.
        hessian_II: H, the sum of x x^T over positions.
        lag_OI: L, the sum of d x^T over positions.
        damp: part of H's mean diagonal that is added to it, for this solution only.
    """
    hessian = hessian_II.to(torch.float64, copy=True)
    hessian.diagonal().add_(damp * (float(hessian.diagonal().mean()) or 1.0))
    step_IO = torch.linalg.solve(hessian, lag_OI.double().T)
    aim_OI: Tensor = weight_OI.double() + CORRECTION * step_IO.T
    return aim_OI.float()


class Passage:
    """The dense model and the compressed one on their way through a block.

    Args:
        loaded: the block that both models pass.
        dropped: its branches that the profile drops.
        dense: hidden states of the dense model before the block.
        states: hidden states of the compressed model before the block.

    Attributes:
        weights: the levels found so far, by layer path.
        positions: of all calibration sequences.
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
        """Layers that read the same tensor, in the order in which they run; without those of dropped branches."""
        self.loaded.install({}, self._dropped)
        _, inputs = self.loaded.record(next(iter(self._dense)))
        order = list(inputs)
        groups = [
            group for branch in self.loaded.block.branches for group in branch.groups if group[0] in inputs
        ]
        return sorted(groups, key=lambda group: order.index(group[0]))

    def silent_before(self, path: str, weight_OI: Tensor) -> tuple[str, ...] | None:
        """The branches to drop for the stream that a layer adds to; None if it does not add to it as it is.

        Believed only where doubling the weight moves the block's output by what the layer gives: a norm or a
        factor behind the layer would show.
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
        """Sums over all positions for layers that read the same x: hessian_II of x x^T, and each lag_OI of d x^T.

        d is what the layer has to make good: W (y - x) for the dense model's y, and with `silent` also what the
        dense model has more in the stream that the layer adds to.
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
        """Inputs of a layer, and with `silent` the stream where these branches would begin."""
        self.loaded.install(weights, dropped)
        inputs_PI = self.loaded.record(states_BTD)[1][path].flatten(0, -2)
        if silent is None:
            return inputs_PI, None
        self.loaded.install(weights, {*dropped, *silent})
        return inputs_PI, self.loaded.record(states_BTD)[0].flatten(0, -2)

    def advance(self) -> None:
        """Take both models past the block."""
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
    """Levels in host memory, and their errors on what the layers now read."""
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
    """The compressed embedding, if the profile has one; the head follows the blocks."""
    path = structure.ends.embedding.path
    return {path: database.load(path, labels[path][0], device).dense()} if path in labels else {}
