"""The calibration sequences that searchers draw fidelities from, and the work that a search asks for."""

from dataclasses import dataclass

from ...evaluators.slopes.slope_trial import passes
from ...evaluators.trial import Fidelity
from ...spaces.space import Space


@dataclass(frozen=True, slots=True)
class CalibrationSequences:
    """The calibration sequences of a run.

    Attributes:
        sequences: number of calibration sequences.
        length: number of tokens of each sequence.
        archive: fixed prefix of the sequences, on which the archive ranks profiles.
    """

    sequences: int
    length: int
    archive: Fidelity

    def __post_init__(self) -> None:
        if self.sequences < 1 or self.length < 1:
            raise ValueError(
                f"{self.sequences} calibration sequences of {self.length} tokens are empty; give at least one of each"
            )
        if not 0 <= self.archive.start < self.archive.stop <= self.sequences:
            raise ValueError(
                f"the archive uses sequences {self.archive.start}..{self.archive.stop}, but there are "
                f"{self.sequences} for calibration; use fewer"
            )

    def count(self, tokens: int) -> int:
        """Return the number of whole sequences that hold at least `tokens` tokens, at most all sequences."""
        return min(max(-(-tokens // self.length), 1), self.sequences)

    def prefix(self, tokens: int) -> Fidelity:
        """Return the fidelity of the first `tokens` tokens: whole sequences (rounded up), or the beginning of one."""
        return Fidelity(0, 0, self.count(tokens), self._cut(tokens))

    def window(self, tokens: int, turn: int, widest: int) -> Fidelity:
        """Return the fidelity of `tokens` tokens from the start of a window, a group of successive sequences.

        Windows do not overlap. After the last whole window the first one comes again.

        Args:
            tokens: number of tokens, rounded up to whole sequences unless it is less than one sequence.
            turn: number of the window, counted from 0 at the first sequence.
            widest: number of tokens of a window, rounded up to whole sequences.
        """
        width = self.count(widest)
        start = turn % (self.sequences // width) * width
        return Fidelity(0, start, start + min(self.count(tokens), width), self._cut(tokens))

    def fresh(self, tokens: int, seed: int) -> Fidelity:
        """Return a fidelity of `tokens` tokens of sequences drawn at random; `seed` decides the draw and is not 0."""
        return Fidelity(seed, 0, self.count(tokens), self._cut(tokens))

    def _cut(self, tokens: int) -> int:
        """Return how many tokens of each sequence are used: all, or `tokens` (at least 2) if that is less than all."""
        return min(max(tokens, 2), self.length)


@dataclass(frozen=True, slots=True)
class Workload:
    """An upper bound of the work that a search asks for.

    Attributes:
        trials: largest number of trials.
        tokens: largest number of tokens that go through the model in all these trials.
    """

    trials: int = 0
    tokens: int = 0

    def add(self, trials: int, fidelity: Fidelity) -> "Workload":
        """Return the work with `trials` more trials at one fidelity."""
        return Workload(self.trials + trials, self.tokens + trials * fidelity.tokens)

    def plus(self, other: "Workload") -> "Workload":
        """Return the sum of this and other work."""
        return Workload(self.trials + other.trials, self.tokens + other.tokens)


def slope_tokens(space: Space, fidelity: Fidelity) -> int:
    """Return the tokens that slopes count as: tokens times forward passes, with one more pass for the dense model."""
    return (passes(space) + 1) * fidelity.tokens
