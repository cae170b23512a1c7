"""Trials, evaluations and slopes: the requests of a searcher and the answers of an evaluator."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..spaces.space import Profile


@dataclass(frozen=True, slots=True)
class Fidelity:
    """The sequences that a trial uses: positions `start..stop` of a seeded order of a data set, cut to one length.

    Attributes:
        seed: seed of the order. 0 is the order that the data set was packed in, which was seeded then; any other
            seed is a permutation of the whole data set that is independent of the permutations of other seeds.
        start: first position in that order.
        stop: position after the last one.
        length: number of tokens used of each sequence; at most the length of the data set's sequences.
        data: name of the data set, `calibration`, `validation` or `heldout`.
    """

    seed: int
    start: int
    stop: int
    length: int
    data: str = "calibration"

    @property
    def sequences(self) -> int:
        """Number of sequences."""
        return self.stop - self.start

    @property
    def tokens(self) -> int:
        """Number of tokens that go through the model for one profile."""
        return self.sequences * self.length

    def parts(self, positions: Iterable[int]) -> "list[Fidelity]":
        """Return the fewest fidelities in the same order that together cover the given ascending positions."""
        bounds: list[list[int]] = []
        for position in positions:
            if bounds and bounds[-1][1] == position:
                bounds[-1][1] = position + 1
            else:
                bounds.append([position, position + 1])
        return [Fidelity(self.seed, start, stop, self.length, self.data) for start, stop in bounds]

    def rows(self, pool: int) -> np.ndarray:
        """Return the row numbers (N,) of this fidelity's sequences in a data set of `pool` sequences."""
        if self.seed == 0:
            return np.arange(self.start, self.stop)
        return np.random.default_rng(self.seed).permutation(pool)[self.start : self.stop]


@dataclass(frozen=True, slots=True)
class Trial:
    """A request to evaluate a profile at a fidelity.

    Attributes:
        number: number of the trial within its run.
        profile: profile of the model to evaluate.
        fidelity: sequences to evaluate the profile on.
        slopes: whether the slopes around the profile are asked for instead of its fitness.
    """

    number: int
    profile: Profile
    fidelity: Fidelity
    slopes: bool = False


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
        levels: unit name to the labels of the levels that the unit can move to, in the order of `sums_FM2`.
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
class Evaluation:
    """The answer to a trial.

    Attributes:
        trial: the trial that is answered.
        values: fitness of each sequence as a mean over its tokens, in the order of the trial's fidelity.
        cross_entropy: mean next-token cross-entropy of each sequence in nats, in the same order.
        seconds: time that this trial took; shared work is divided evenly over the trials that shared it.
        error: reason why the trial has no usable values, or None.
        slopes: slopes around the profile where the trial asks for them; then there are no values.
    """

    trial: Trial
    values: tuple[float, ...]
    cross_entropy: tuple[float, ...]
    seconds: float = 0.0
    error: str | None = None
    slopes: SlopeSums | None = None

    @property
    def fitness(self) -> float:
        """Mean of the values, where lower is better; infinite if there are no values or the mean is NaN.

        All sequences have the same length, so this is also the mean over tokens.
        """
        mean = math.fsum(self.values) / len(self.values) if self.values else math.inf
        return mean if mean == mean else math.inf

    @property
    def perplexity(self) -> float:
        """Exponential of the mean cross-entropy over the sequences."""
        return math.exp(min(math.fsum(self.cross_entropy) / len(self.cross_entropy), 700.0))


def joined_slopes(trial: Trial, parts: Iterable[Evaluation]) -> Evaluation:
    """Join the answers to all parts of a trial that asks for slopes.

    Args:
        trial: the whole trial.
        parts: answers to all its parts, in any order.

    Returns:
        The answer to the whole trial; if any part has an error, so has the answer.
    """
    ordered = sorted(parts, key=lambda part: part.trial.fidelity.start)
    seconds = math.fsum(part.seconds for part in ordered)
    if errors := [part.error for part in ordered if part.error is not None]:
        return Evaluation(trial, (), (), seconds, errors[0])
    found = [part.slopes for part in ordered if part.slopes is not None]
    return Evaluation(trial, (), (), seconds, slopes=SlopeSums.joined(found))


class Evaluator(Protocol):
    """Interface of whatever evaluates profiles."""

    @property
    def fingerprint(self) -> str:
        """Digest of everything that a value depends on besides profile and fidelity."""

    def evaluate(self, trials: Iterable[Trial]) -> Iterator[Evaluation]:
        """Yield one evaluation per trial as they finish, in any order."""
