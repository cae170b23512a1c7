"""How the fitness changes when one unit at a time leaves its level, to second order, from backward passes.

Shapes: B micro-batch, T positions, D hidden, P positions of several sequences, I inputs of a layer, O outputs.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ...spaces.model.structure import Block
from ...spaces.space import DENSE, Profile, Space
from ..fitness import FitnessConfig
from ..levels.calibration import host_copy
from ..runner.block_weights import BlockWeights, Key
from ..runner.gradients import GradientRunner
from ..runner.installing import configuration, install, wanted
from ..runner.loaded import LoadedBlock
from ..trial import SlopeSums
from .batches import Batch
from .end_slopes import EndMoves, orders_of

Gradients = tuple[Tensor, Tensor]
"""Of the fitness and of the drawn tokens' log-likelihood, by hidden states (B, T, D) of one micro-batch."""

Floats = npt.NDArray[np.float64]

_Sums = dict[str, dict[str, Floats]]
"""By unit and label the first and the second order (M, 2) of each of M micro-batches."""


@dataclass(frozen=True)
class _Moves:
    """What the units of a block may become.

    Attributes:
        branches: unit and label of each branch's other state to what the model then is.
        layers: unit, label and layer of each other level.
    """

    branches: Mapping[tuple[str, str], Mapping[str, str]]
    layers: Sequence[tuple[str, str, str]]


def level_slopes(
    runner: GradientRunner,
    space: Space,
    weights: BlockWeights,
    profile: Profile,
    batches: Sequence[Batch],
    fitness: FitnessConfig,
    together: int = 1 << 30,
) -> SlopeSums:
    """First- and second-order change of the fitness for every level of every unit around a profile.

    A level changes a layer's output at a position by d. To first order the fitness changes by g . d, with g its
    gradient by that output; to second order by d^T F d / 2 more, with F the Fisher matrix there, the mean of h h^T
    over tokens that the model draws, h the gradient of their log-likelihood: so (h . d)^2 / 2 for one draw. What
    positions and layers do together is left out. A branch that is dropped or brought back changes its block's
    output instead; the embedding's level, what enters the first block. Units under a dropped branch have no inputs and no
    slopes. What a micro-batch adds does not depend on the others.

    Around the dense model (`DENSE`) the gradient of the divergence is zero, and what remains is the Fisher
    score of every level. Drawn tokens, because the text's own would give the `empirical` Fisher, which is another
    matrix.

    Time: `passes`, and the dense model's forward pass, which is the teacher's. Memory: in host memory the
    hidden states before every block, of `together` micro-batches; on the device one block with its graph and its levels, and those of the ends.

    Args:
        runner: of the dense model.
        space: whose units are moved.
        weights: of its levels and of the dense model.
        profile: to move from.
        batches: the micro-batches of calibration text.
        fitness: what is minimised.
        together: micro-batches whose states are kept at once; changes no bit.

    References:
        Optimal Brain Damage and HAWQ-V2 (arXiv 1911.03852) for the second order; NVIDIA ModelOpt's AutoQuantize and
        AutoRound's AutoScheme for gradient times difference per layer and format; Kunstner et al. (arXiv
        1905.12558) on the empirical Fisher.
    """
    around = _Around(runner, space, weights, profile)
    starts = range(0, len(batches), together)
    return SlopeSums.joined([around.sums(batches[first : first + together], fitness) for first in starts])


class _Around:
    """One profile's way through the model and back."""

    def __init__(self, runner: GradientRunner, space: Space, weights: BlockWeights, profile: Profile) -> None:
        self.runner = runner
        self.space = space
        self.weights = weights
        self.profile = profile
        self.assignment = space.assignment(profile)
        self.ends = EndMoves(runner, space, weights, self.assignment)

    def sums(self, batches: Sequence[Batch], fitness: FitnessConfig) -> SlopeSums:
        """The slopes over some micro-batches, which pass each block together."""
        before, last, dense = self.forward([batch.tokens_BT for batch in batches])
        gradients: list[Gradients] = []
        sums: _Sums = {unit.name: {} for unit in self.space.units}

        def add(unit: str, label: str, m: int, orders: tuple[float, float]) -> None:
            _place(sums[unit], label, len(batches))[m] += orders

        for m, (batch, last_BTD, dense_BTD) in enumerate(zip(batches, last, dense, strict=True)):
            rng = np.random.default_rng(batch.seed)
            head = self.ends.head(batch)
            pair = self.runner.end_gradients(
                last_BTD, dense_BTD, batch.tokens_BT, fitness, rng, ends=self.ends.here, visit=head.visit
            )
            for (unit, label), orders in head.sums.items():
                add(unit, label, m, orders)
            for gradient_BTD in pair:
                gradient_BTD[batch.count :] = 0.0
            gradients.append((host_copy(pair[0]), host_copy(pair[1])))
        blocks = self.runner.structure.blocks
        moves = [self._moves(block) for block in blocks]
        needed = [
            wanted(block, [self.assignment, *move.branches.values()])
            | {(path, label) for _, label, path in move.layers}
            for block, move in zip(blocks, moves, strict=True)
        ]
        with closing(self.weights.stream(needed, backwards=True)) as stream:
            for block, matrices in zip(reversed(blocks), stream, strict=True):
                self.backward(block, moves[block.index], matrices, before.pop(), gradients, sums)
        for m, (batch, pair) in enumerate(zip(batches, gradients, strict=True)):
            for unit, label, change_BTD in self.ends.entering(batch.tokens_BT):
                fitness_BTD, likelihood_BTD = (gradient_BTD.to(change_BTD.device) for gradient_BTD in pair)
                add(unit, label, m, orders_of(fitness_BTD, likelihood_BTD, change_BTD))
        rows = [sums_M2 for row in sums.values() for sums_M2 in row.values()]
        return SlopeSums(
            {unit: tuple(row) for unit, row in sums.items()},
            np.array(rows).reshape(len(rows), len(batches), 2),
            sum(batch.count * (batch.tokens_BT.shape[1] - 1) for batch in batches),
        )

    def forward(self, tokens: Sequence[Tensor]) -> tuple[list[list[Tensor]], list[Tensor], list[Tensor]]:
        """Host copies of the states before every block, after the last, and of the dense model after the last."""
        runner, blocks = self.runner, self.runner.structure.blocks
        before = [self._embedded(tokens, self.ends.here)]
        dense = self._embedded(tokens, {}) if self.ends.here else before[0]
        needed = [wanted(block, [self.assignment, {}]) for block in blocks]
        with closing(self.weights.stream(needed)) as stream:
            for block, matrices in zip(blocks, stream, strict=True):
                with runner.block(block.index, dense=False) as loaded:
                    if self.assignment:
                        install(loaded, configuration(block, {}), matrices)
                        dense = [host_copy(loaded(states_BTD)) for states_BTD in dense]
                    install(loaded, configuration(block, self.assignment), matrices)
                    before.append([host_copy(loaded(states_BTD)) for states_BTD in before[-1]])
        last = before.pop()
        return before, last, dense if self.assignment else last

    def _embedded(self, tokens: Sequence[Tensor], ends: Mapping[str, Tensor]) -> list[Tensor]:
        with self.runner.ends(ends):
            return [host_copy(self.runner.embed(tokens_BT.to(self.runner.device))) for tokens_BT in tokens]

    def backward(
        self,
        block: Block,
        moves: _Moves,
        matrices: dict[Key, Tensor],
        before: Sequence[Tensor],
        gradients: Sequence[Gradients],
        sums: _Sums,
    ) -> None:
        """Add the slopes of a block's units to `sums`, and take the gradients past it, in place."""
        here = configuration(block, self.assignment)
        with self.runner.block(block.index, dense=False) as loaded:
            install(loaded, here, matrices)
            if moves.branches:
                self._add_branches(loaded, moves, matrices, before, gradients, sums)
                install(loaded, here, matrices)
            changes = self._changes(moves, dict(here), matrices)
            for m, (states_BTD, pair) in enumerate(zip(before, gradients, strict=True)):
                passed = self.runner.backward(loaded, states_BTD, pair)
                for gradient_BTD, (leaving_BTD, _) in zip(pair, passed, strict=True):
                    gradient_BTD.copy_(leaving_BTD)
                for (unit, label, path), change_OI in changes.items():
                    inputs_PI, fitness_PO = passed[0][1][path]
                    difference_PO = inputs_PI.to(change_OI.dtype) @ change_OI.T
                    sums_2 = _place(sums[unit], label, len(before))[m]
                    sums_2 += orders_of(fitness_PO, passed[1][1][path][1], difference_PO.float())

    def _moves(self, block: Block) -> _Moves:
        """What the block's units may become; nothing of layers under a dropped branch."""
        branches: dict[tuple[str, str], Mapping[str, str]] = {}
        layers = []
        for u, unit in enumerate(self.space.units):
            if unit.block != block.index:
                continue
            if unit.droppable and self.profile == DENSE:
                branches[unit.name, "drop"] = dict.fromkeys(unit.modules, "drop")
            elif unit.droppable:
                other = 1 - self.profile[u]
                moved = (*self.profile[:u], other, *self.profile[u + 1 :])
                branches[unit.name, unit.levels[other].label] = self.space.assignment(moved)
            for path in () if unit.droppable else unit.modules:
                if (here := self.assignment.get(path, "dense")) != "drop":
                    layers += [(unit.name, label, path) for label in unit.index if label != here]
        return _Moves(branches, layers)

    def _add_branches(
        self,
        loaded: LoadedBlock,
        moves: _Moves,
        matrices: Mapping[Key, Tensor],
        before: Sequence[Tensor],
        gradients: Sequence[Gradients],
        sums: _Sums,
    ) -> None:
        """Add what dropping or restoring a branch changes in the output of the block as it is installed."""
        here = [host_copy(loaded(states_BTD)) for states_BTD in before]
        for (unit, label), assignment in moves.branches.items():
            install(loaded, configuration(loaded.block, assignment), matrices)
            sums_M2 = _place(sums[unit], label, len(before))
            for m, (states_BTD, here_BTD, pair) in enumerate(zip(before, here, gradients, strict=True)):
                change_BTD = loaded(states_BTD).float() - here_BTD.to(loaded.device).float()
                fitness_BTD, likelihood_BTD = (gradient_BTD.to(loaded.device) for gradient_BTD in pair)
                sums_M2[m] += orders_of(fitness_BTD, likelihood_BTD, change_BTD)

    def _changes(
        self, moves: _Moves, here: Mapping[str, str], matrices: dict[Key, Tensor]
    ) -> dict[tuple[str, str, str], Tensor]:
        """What each level changes in each weight (O, I), by unit, label and layer; takes the levels out of `matrices`."""
        return {
            (unit, label, path): (
                matrices.pop((path, label)).float() - matrices[path, here[path]].float()
            ).to(self.runner.dtype)
            for unit, label, path in moves.layers
        }


def _place(row: dict[str, Floats], label: str, count: int) -> Floats:
    """A level's sums over `count` micro-batches, which begin at 0."""
    return row.setdefault(label, np.zeros((count, 2)))
