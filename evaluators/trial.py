"""Requests and answers: what a searcher asks and what an evaluator returns."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..spaces.space import Profile


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Which sequences a trial uses: positions `start..stop` of one seeded order, at one length.

    Attributes:
        seed: 0 is the pool's own order (seeded when the pool was packed); any other seed is a fresh
            permutation of the whole pool, which shares nothing with other seeds.
        start: first position in that order.
        stop: one past the last position.
        length: tokens of each sequence that are used; at most the pool's length.
        data: `calibration`, `validation` or `heldout`.
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
        """Tokens that go through the model for one profile."""
        return self.sequences * self.length

    def parts(self, positions: Iterable[int]) -> "list[Fidelity]":
        """Ascending positions of this order as the fewest ranges."""
        bounds: list[list[int]] = []
        for position in positions:
            if bounds and bounds[-1][1] == position:
                bounds[-1][1] = position + 1
            else:
                bounds.append([position, position + 1])
        return [Fidelity(self.seed, start, stop, self.length, self.data) for start, stop in bounds]

    def rows(self, pool: int) -> np.ndarray:
        """Row numbers, in a pool of `pool` sequences, that this fidelity stands for."""
        if self.seed == 0:
            return np.arange(self.start, self.stop)
        return np.random.default_rng(self.seed).permutation(pool)[self.start : self.stop]


@dataclass(frozen=True, slots=True)
class Trial:
    """A request: evaluate `profile` at `fidelity`.

    Attributes:
        number: counts trials within one run.
        profile: of the model.
        fidelity: on which sequences.
        slopes: ask for the slopes around the profile instead of its fitness.
    """

    number: int
    profile: Profile
    fidelity: Fidelity
    slopes: bool = False


@dataclass(frozen=True, slots=True)
class Slopes:
    """How the fitness changes when one unit of a profile goes to another level, by unit name and label.

    Attributes:
        first: change to first order, nats per token.
        second: what second order adds, by the curvature at the profile.
    """

    first: Mapping[str, Mapping[str, float]]
    second: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, eq=False)
class SlopeSums:
    """Slopes as sums over each micro-batch by itself, so that however a trial was divided, it has the same slopes.

    Memory: 16 bytes per level of a unit and micro-batch; 26 MB for 10,000 units, 5 levels and 32 micro-batches.

    Attributes:
        levels: labels by unit name, in the order of `sums_FM2`.
        sums_FM2: of first and second order over the tokens of each of M micro-batches, F levels of all units in a row.
        tokens: of all micro-batches, which the slopes are the mean over.
    """

    levels: Mapping[str, tuple[str, ...]]
    sums_FM2: npt.NDArray[np.float64]
    tokens: int

    @property
    def finite(self) -> bool:
        """Whether every sum is a number."""
        return bool(np.isfinite(self.sums_FM2).all())

    @classmethod
    def joined(cls, parts: Sequence["SlopeSums"]) -> "SlopeSums":
        """Join the sums of the parts of one trial."""
        sums_FM2 = np.concatenate([part.sums_FM2 for part in parts], axis=1)
        return cls(parts[0].levels, sums_FM2, sum(part.tokens for part in parts))

    def mean(self) -> Slopes:
        """Slopes per token of finite sums, summed exactly, so that no order of the micro-batches changes a bit."""
        return Slopes(self._mean(0), self._mean(1))

    def _mean(self, order: int) -> dict[str, dict[str, float]]:
        means = (math.fsum(sums_M) / self.tokens for sums_M in self.sums_FM2[:, :, order].tolist())
        return {unit: {label: next(means) for label in labels} for unit, labels in self.levels.items()}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An answer.

    Attributes:
        trial: what was asked.
        values: the fitness of each sequence in the order of the trial's fidelity, a mean per token.
        cross_entropy: mean next-token cross-entropy of each sequence in nats.
        seconds: time this trial took; shared work is divided evenly over the trials that shared it.
        error: why there are no values, or None.
        slopes: if they were asked for; then there are no values.
    """

    trial: Trial
    values: tuple[float, ...]
    cross_entropy: tuple[float, ...]
    seconds: float = 0.0
    error: str | None = None
    slopes: SlopeSums | None = None

    @property
    def fitness(self) -> float:
        """Mean over the sequences (all have one length); lower is better; infinite after an error or NaN."""
        mean = math.fsum(self.values) / len(self.values) if self.values else math.inf
        return mean if mean == mean else math.inf

    @property
    def perplexity(self) -> float:
        """Exponential of the mean cross-entropy."""
        return math.exp(min(math.fsum(self.cross_entropy) / len(self.cross_entropy), 700.0))


def joined_slopes(trial: Trial, parts: Iterable[Evaluation]) -> Evaluation:
    """The answer to a trial that asks for slopes from answers to all its parts, in any order; an error in one is one of all."""
    ordered = sorted(parts, key=lambda part: part.trial.fidelity.start)
    seconds = math.fsum(part.seconds for part in ordered)
    if errors := [part.error for part in ordered if part.error is not None]:
        return Evaluation(trial, (), (), seconds, errors[0])
    found = [part.slopes for part in ordered if part.slopes is not None]
    return Evaluation(trial, (), (), seconds, slopes=SlopeSums.joined(found))


class Evaluator(Protocol):
    """Measures profiles."""

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides a value besides profile and fidelity."""

    def evaluate(self, trials: Iterable[Trial]) -> Iterator[Evaluation]:
        """Yield one evaluation per trial as they finish, in any order."""
