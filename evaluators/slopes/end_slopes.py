"""Slopes of the levels of the embedding and the head, to second order.

Shapes: B sequences of a micro-batch, T positions, D hidden size, P positions of several sequences, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ...spaces.space import Space
from ..runner.block_weights import DENSE, BlockWeights
from ..runner.gradients import GradientRunner
from ..runner.head import product
from .batches import Batch

Orders = tuple[float, float]
"""First- and second-order term of a change of the fitness, in nats summed over positions."""


def orders_of(fitness: Tensor, likelihood: Tensor, difference: Tensor) -> Orders:
    """Return the first- and second-order change of the fitness, summed over positions, when outputs change.

    The first order is the inner product of the fitness's gradient with the change. The second order is half of the
    squared inner product of the likelihood's gradient with the change, squared at each position by itself.

    Args:
        fitness: gradient of the fitness by the outputs, (..., O).
        likelihood: gradient of the drawn tokens' log-likelihood by the outputs, (..., O).
        difference: change of the outputs, (..., O).
    """
    first = float((fitness * difference).sum(dtype=torch.float64))
    second = float(torch.linalg.vecdot(likelihood, difference).double().square().sum()) / 2
    return first, second


class EndMoves:
    """The other levels that embedding and head can move to from a profile.

    Where embedding and head are tied, one level changes both.

    Args:
        runner: runner of the model, forwards and backwards.
        space: space whose units move.
        weights: source of the weights of all levels.
        assignment: maps the path of each compressed layer to its label in the profile.

    Attributes:
        here: weights (V, D) of the embedding and the head in the profile, by path; dense ones are left out.
    """

    def __init__(
        self,
        runner: GradientRunner,
        space: Space,
        weights: BlockWeights,
        assignment: Mapping[str, str],
    ) -> None:
        self._runner = runner
        self._weights = weights
        ends = runner.structure.ends
        self._head = ends.embedding.path if ends.tied else ends.head.path
        self._embedding = ends.embedding.path
        self._labels = {path: assignment.get(path, DENSE) for path in {self._embedding, self._head}}
        self.here = {
            path: self._weight(path, label) for path, label in self._labels.items() if label != DENSE
        }
        self._moves = [
            (unit.name, label, path)
            for unit in space.units
            for path in unit.modules
            if path in self._labels
            for label in unit.index
            if label != self._labels[path]
        ]

    def entering(self, tokens_BT: Tensor) -> Iterator[tuple[str, str, Tensor]]:
        """Yield unit, label and change of the first block's input (B, T, D) for every other level of the embedding."""
        moves = [(unit, label) for unit, label, path in self._moves if path == self._embedding]
        here_BTD = self._embedded(tokens_BT, self.here) if moves else None
        for unit, label in moves:
            assert here_BTD is not None
            there = self.here | {self._embedding: self._weight(self._embedding, label)}
            yield unit, label, self._embedded(tokens_BT, there) - here_BTD

    def head(self, batch: Batch) -> "HeadSums":
        """Return an accumulator of the head's slopes over one micro-batch."""
        here = self.here.get(self._head, self._runner.dense_end(self._head))
        others = {
            (unit, label): self._weight(path, label)
            for unit, label, path in self._moves
            if path == self._head
        }
        return HeadSums(here, others, batch.count * (batch.tokens_BT.shape[1] - 1))

    def _embedded(self, tokens_BT: Tensor, ends: Mapping[str, Tensor]) -> Tensor:
        with self._runner.ends(ends):
            return self._runner.embed(tokens_BT.to(self._runner.device)).float()

    def _weight(self, path: str, label: str) -> Tensor:
        if label == DENSE:
            return self._runner.dense_end(path)
        return self._weights.end(path, label, self._runner.device)


class HeadSums:
    """Accumulates the slopes of the head's levels over the positions of one micro-batch.

    Args:
        here: the profile's weight of the head, (V, D).
        others: maps unit name and label to the head's weight (V, D) at that level.
        rows: number of leading positions that count.

    Attributes:
        sums: maps unit name and label to the first- and second-order change, summed over the positions visited so far.
    """

    def __init__(self, here: Tensor, others: Mapping[tuple[str, str], Tensor], rows: int) -> None:
        self.sums: dict[tuple[str, str], Orders] = defaultdict(lambda: (0.0, 0.0))
        self._here = here
        self._others = others
        self._left = rows

    def visit(self, inputs_PD: Tensor, fitness_PV: Tensor, likelihood_PV: Tensor) -> None:
        """Add the next positions.

        Args:
            inputs_PD: inputs of the head.
            fitness_PV: gradient of the fitness by the head's outputs.
            likelihood_PV: gradient of the drawn tokens' log-likelihood by the head's outputs.
        """
        rows = slice(min(len(inputs_PD), self._left))
        self._left -= len(inputs_PD[rows])
        logits_PV = product(inputs_PD, self._here) if self._others else None
        for key, weight_VD in self._others.items():
            assert logits_PV is not None
            difference_PV = product(inputs_PD, weight_VD) - logits_PV
            first, second = orders_of(
                fitness_PV[rows].float(), likelihood_PV[rows].float(), difference_PV[rows]
            )
            self.sums[key] = (self.sums[key][0] + first, self.sums[key][1] + second)
