"""The kind of trial that asks for slopes, and its answer."""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ...spaces.space import Space
from ..trial import Evaluation, Trial


@dataclass(frozen=True, slots=True)
class SlopeTrial(Trial):
    """A request for the slopes around a profile, instead of its fitness."""

    asks_for: ClassVar[str] = "slopes"
    essential: ClassVar[bool] = True
    repeats_work: ClassVar[bool] = True
    """Every part has to compute the weights of all levels."""

    @property
    def stage(self) -> Hashable:
        """Key of the trials that are evaluated together: the trial itself, as slopes of two trials share no work."""
        return self

    def work(self, space: Space) -> int:
        """Return the time that the slopes take, in tokens that go forward through the model."""
        return self.fidelity.tokens * passes(space)


@dataclass(frozen=True, slots=True)
class Slopes:
    """Predicted change of the fitness when one unit of a profile moves to another level.

    Both mappings go from unit name to label to a change in nats per token.

    Attributes:
        first: first-order term of each change, from the gradient at the profile.
        second: second-order term of each change, from the curvature at the profile.
    """

    first: Mapping[str, Mapping[str, float]]
    second: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, eq=False)
class SlopeSums:
    """Slopes as one sum per micro-batch, so that the slopes of a trial do not depend on how it was divided.

    Memory: 16 bytes per level of a unit and micro-batch; 26 MB for 10,000 units, 5 levels and 32 micro-batches.

    Attributes:
        levels: maps unit name to the labels of the levels that the unit can move to, in the order of `sums_FM2`.
        sums_FM2: first- and second-order changes in nats, each summed over the tokens of a micro-batch: F levels of
            all units one after the other, M micro-batches, 2 orders.
        tokens: number of tokens in all micro-batches, which the sums are divided by.
    """

    levels: Mapping[str, tuple[str, ...]]
    sums_FM2: npt.NDArray[np.float64]
    tokens: int

    @property
    def finite(self) -> bool:
        """Whether every sum is finite."""
        return bool(np.isfinite(self.sums_FM2).all())

    @classmethod
    def joined(cls, parts: Sequence["SlopeSums"]) -> "SlopeSums":
        """Join the sums of the parts of one trial."""
        sums_FM2 = np.concatenate([part.sums_FM2 for part in parts], axis=1)
        return cls(parts[0].levels, sums_FM2, sum(part.tokens for part in parts))

    def mean(self) -> Slopes:
        """Return the slopes per token; every sum must be finite.

        The sums of the micro-batches are added exactly, so the order of the micro-batches does not change a bit.
        """
        return Slopes(self._mean(0), self._mean(1))

    def _mean(self, order: int) -> dict[str, dict[str, float]]:
        means = (math.fsum(sums_M) / self.tokens for sums_M in self.sums_FM2[:, :, order].tolist())
        return {unit: {label: next(means) for label in labels} for unit, labels in self.levels.items()}


@dataclass(frozen=True, slots=True)
class SlopeEvaluation(Evaluation):
    """The answer to a `SlopeTrial`. Its `values` and `cross_entropy` are empty.

    Attributes:
        slopes: slopes around the profile, or None if there is an error.
    """

    slopes: SlopeSums | None = None


def joined_slopes(trial: SlopeTrial, parts: Iterable[Evaluation]) -> SlopeEvaluation:
    """Join the answers to all parts of a trial.

    Args:
        trial: the whole trial.
        parts: answers to all its parts, in any order.

    Returns:
        The answer to the whole trial; if any part has an error, so has the answer.
    """
    ordered = sorted(parts, key=lambda part: part.trial.fidelity.start)
    seconds = math.fsum(part.seconds for part in ordered)
    if errors := [part.error for part in ordered if part.error is not None]:
        return SlopeEvaluation(trial, (), (), seconds, errors[0])
    found = [part.slopes for part in ordered if isinstance(part, SlopeEvaluation) and part.slopes is not None]
    return SlopeEvaluation(trial, (), (), seconds, slopes=SlopeSums.joined(found))


def passes(space: Space) -> int:
    """Return an upper bound of the time that slopes cost, in forward passes of the model.

    Two passes go forward and two backward. Each other level adds a product as long as a forward pass; with droppable
    branches there is one more pass, and one per branch of the block that has most.
    """
    levels = max((len(unit.levels) - 1 for unit in space.units if not unit.droppable), default=0)
    branches = Counter(unit.block for unit in space.units if unit.droppable)
    return 4 + levels + (1 + max(branches.values()) if branches else 0)
