"""Trials and evaluations: the requests of a searcher and the answers of an evaluator."""

import math
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from ..spaces.space import Profile, Space


@dataclass(frozen=True, slots=True)
class Fidelity:
    """The sequences that a trial uses: positions `start..stop` of a seeded order of a data set, cut to one length.

    Attributes:
        seed: seed of the order. 0 stands for the order in which the data set is stored. Any other seed gives a random
            permutation of the whole data set, independent of the permutations of other seeds.
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
    """A request to evaluate a profile at a fidelity; subclasses ask for something else than the fitness.

    Attributes:
        number: number of the trial within its run.
        profile: profile of the model to evaluate.
        fidelity: sequences to evaluate the profile on.
        asks_for: name of what the trial asks for, for messages.
        essential: whether the search must end if the trial fails, because it would go on differently without an answer.
        repeats_work: whether every part of a divided trial repeats most of the work of the whole.
    """

    number: int
    profile: Profile
    fidelity: Fidelity

    asks_for: ClassVar[str] = "fitness"
    essential: ClassVar[bool] = False
    repeats_work: ClassVar[bool] = False

    @property
    def stage(self) -> Hashable:
        """Key of the trials that are evaluated together with this one: those of the same fidelity."""
        return self.fidelity

    def work(self, space: Space) -> int:
        """Return the time that the trial takes, in tokens that go forward through the model."""
        del space  # needed by other kinds
        return self.fidelity.tokens


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The answer to a trial.

    Attributes:
        trial: the trial that is answered.
        values: fitness of each sequence as a mean over its tokens, in the order of the trial's fidelity.
        cross_entropy: mean next-token cross-entropy of each sequence in nats, in the same order.
        seconds: time that this trial took; shared work is divided evenly over the trials that shared it.
        error: reason why the trial has no usable values, or None.
    """

    trial: Trial
    values: tuple[float, ...]
    cross_entropy: tuple[float, ...]
    seconds: float = 0.0
    error: str | None = None

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


class Evaluator(Protocol):
    """Interface of whatever evaluates profiles."""

    @property
    def fingerprint(self) -> str:
        """Digest of everything that a value depends on besides profile and fidelity."""

    def evaluate(self, trials: Iterable[Trial]) -> Iterator[Evaluation]:
        """Yield the evaluation of each trial as soon as it is finished, in any order."""
