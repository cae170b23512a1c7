"""Slopes around a profile: change of the fitness when one unit at a time moves to another level, to second order.

Shapes: B sequences of a micro-batch, T positions, D hidden size, P positions of several sequences, I inputs of a layer,
O outputs of a layer, M micro-batches.
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
from .batches import Batch
from .end_slopes import EndMoves, orders_of
from .slope_trial import SlopeSums

Gradients = tuple[Tensor, Tensor]
"""Gradients of the fitness and of the drawn tokens' log-likelihood by the hidden states (B, T, D) of a micro-batch."""

Floats = npt.NDArray[np.float64]

_Sums = dict[str, dict[str, Floats]]
"""First- and second-order change of the fitness in each micro-batch, (M, 2), by unit name and label."""


@dataclass(frozen=True)
class _Moves:
    """The moves of a block's units to other levels.

    Attributes:
        branches: maps unit name and label of the other state of each branch (dropped or kept) to the model with that
            state, which is a mapping from layer path to label.
        layers: unit name, label and layer path of each other level of each linear layer.
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
    """Compute the first- and second-order change of the fitness for every level of every unit around a profile.

    A level changes the output of a layer at a position by d. To first order this changes the fitness by g . d, where g
    is the gradient of the fitness by that output. The second order adds d^T F d / 2, where F is the Fisher matrix at
    that output: the mean of h h^T over tokens drawn from the model, with h the gradient of a drawn token's
    log-likelihood. One token is drawn at each position, so the estimate of the second order is (h . d)^2 / 2. Joint
    effects of several positions or layers are left out.

    Dropping or restoring a branch changes the output of its block, and d is that change. A level of the embedding
    changes the input of the first block. Units under a dropped branch have no inputs and no slopes. The sums of one
    micro-batch do not depend on the other micro-batches.

    Around the dense model (`DENSE`) the gradient of the divergence is zero, so that only the Fisher score of every
    level remains. Tokens are drawn because the tokens of the text would give the `empirical` Fisher matrix, which is a
    different matrix.

    Time: `passes` forward passes, and one of the dense model as the teacher. Memory: on the host the hidden states
    before every block, of `together` micro-batches; on the device one block with its graph and levels, and the levels
    of embedding and head.

    Args:
        runner: runner of the dense model, forwards and backwards.
        space: space whose units move.
        weights: source of the weights of all levels and of the dense model.
        profile: profile that the units move from.
        batches: micro-batches of calibration sequences.
        fitness: settings of the fitness whose slopes are computed.
        together: number of micro-batches whose hidden states are kept at once; does not change a bit of the slopes.

    References:
        Optimal Brain Damage and HAWQ-V2 (arXiv 1911.03852) for the second order; NVIDIA ModelOpt's AutoQuantize and
        AutoRound's AutoScheme for gradient times difference per layer and format; Kunstner et al. (arXiv
        1905.12558) on the empirical Fisher.
    """
    around = _Around(runner, space, weights, profile)
    starts = range(0, len(batches), together)
    return SlopeSums.joined([around.sums(batches[first : first + together], fitness) for first in starts])


class _Around:
    """Forward and backward passes of the model of one profile, which give its slopes."""

    def __init__(self, runner: GradientRunner, space: Space, weights: BlockWeights, profile: Profile) -> None:
        self.runner = runner
        self.space = space
        self.weights = weights
        self.profile = profile
        self.assignment = space.assignment(profile)
        self.ends = EndMoves(runner, space, weights, self.assignment)

    def sums(self, batches: Sequence[Batch], fitness: FitnessConfig) -> SlopeSums:
        """Compute the slopes over some micro-batches, which run through each block together."""
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
        """Run the micro-batches forward and return host copies of hidden states (B, T, D).

        Args:
            tokens: token ids (B, T) of every micro-batch.

        Returns:
            For every block the states before it, one tensor per micro-batch; the states after the last block; and the
            dense model's states after the last block.
        """
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
        """Add the slopes of a block's units, and replace the gradients by those at the block's input.

        Args:
            block: block to run backwards.
            moves: moves of the block's units.
            matrices: weights (O, I) of the block by layer path and label; those of other levels are removed.
            before: hidden states (B, T, D) before the block, one tensor per micro-batch.
            gradients: gradients by the block's output, one pair per micro-batch; overwritten.
            sums: changes of the fitness so far; the block's are added.
        """
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
        """Return the moves of the block's units; layers under a dropped branch have none."""
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
        """Add the slopes of dropping or restoring each branch of the block, measured at the block's output."""
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
        """Return by how much each weight changes if its unit moves, and remove the other levels from `matrices`.

        Args:
            moves: moves of the block's units.
            here: maps the path of each layer to the label that is installed.
            matrices: weights (O, I) by layer path and label; those that units can move to are removed.

        Returns:
            The weight at the other level minus the installed weight, (O, I), by unit name, label and layer path.
        """
        return {
            (unit, label, path): (
                matrices.pop((path, label)).float() - matrices[path, here[path]].float()
            ).to(self.runner.dtype)
            for unit, label, path in moves.layers
        }


def _place(row: dict[str, Floats], label: str, count: int) -> Floats:
    """Return the sums (count, 2) of a level over `count` micro-batches, made as zeros on the first call."""
    return row.setdefault(label, np.zeros((count, 2)))
