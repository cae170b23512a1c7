"""What levels of embedding and head change, to second order.

Shapes: B micro-batch, T positions, D hidden, P positions of several sequences, V vocabulary.
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
"""First and second order of a change of the fitness."""


def orders_of(fitness: Tensor, likelihood: Tensor, difference: Tensor) -> Orders:
    """Inner product of fitness gradient and difference; half of the squared ones of the likelihood's, per position."""
    first = float((fitness * difference).sum(dtype=torch.float64))
    second = float(torch.linalg.vecdot(likelihood, difference).double().square().sum()) / 2
    return first, second


class EndMoves:
    """Levels of embedding and head around a profile; where they are tied, one level changes both.

    Args:
        runner: runs the model.
        space: whose units are moved.
        weights: of the levels.
        assignment: what the profile builds.

    Attributes:
        here: the profile's weights (V, D) by path, where they are not the dense ones.
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
        """Unit, label and change (B, T, D) of what enters the first block, for every other level of the embedding."""
        moves = [(unit, label) for unit, label, path in self._moves if path == self._embedding]
        here_BTD = self._embedded(tokens_BT, self.here) if moves else None
        for unit, label in moves:
            assert here_BTD is not None
            there = self.here | {self._embedding: self._weight(self._embedding, label)}
            yield unit, label, self._embedded(tokens_BT, there) - here_BTD

    def head(self, batch: Batch) -> "HeadSums":
        """What adds up the head's part over a micro-batch."""
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
    """Sums over the positions of one micro-batch.

    Args:
        here: the head's weight (V, D).
        others: unit and label to another weight.
        rows: positions that count, from the first on.
    """

    def __init__(self, here: Tensor, others: Mapping[tuple[str, str], Tensor], rows: int) -> None:
        self.sums: dict[tuple[str, str], Orders] = defaultdict(lambda: (0.0, 0.0))
        self._here = here
        self._others = others
        self._left = rows

    def visit(self, inputs_PD: Tensor, fitness_PV: Tensor, likelihood_PV: Tensor) -> None:
        """Add the next positions, given the head's inputs and both gradients by its outputs."""
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
