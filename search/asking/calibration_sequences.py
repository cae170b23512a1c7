"""What a searcher may spend: the calibration calibration it draws fidelities from."""

from dataclasses import dataclass

from ...evaluators.slopes.passes import passes
from ...evaluators.trial import Fidelity
from ...spaces.space import Space


@dataclass(frozen=True, slots=True)
class CalibrationSequences:
    """The calibration sequences of a run.

    Attributes:
        sequences: how many there are.
        length: tokens of each.
        archive: the fixed prefix on which the archive ranks profiles.
    """

    sequences: int
    length: int
    archive: Fidelity

    def __post_init__(self) -> None:
        if self.sequences < 1 or self.length < 1:
            raise ValueError(f"{self.sequences} calibration sequences of {self.length} tokens hold nothing")
        if not 0 <= self.archive.start < self.archive.stop <= self.sequences:
            raise ValueError(
                f"the archive uses sequences {self.archive.start}..{self.archive.stop} of the "
                f"{self.sequences} for calibration; ask for fewer"
            )

    def count(self, tokens: int) -> int:
        """Whole sequences that hold at least `tokens` tokens, at most the calibration."""
        return min(max(-(-tokens // self.length), 1), self.sequences)

    def prefix(self, tokens: int) -> Fidelity:
        """The first `tokens` tokens: whole sequences, rounded up, or the beginning of one."""
        return Fidelity(0, 0, self.count(tokens), self._cut(tokens))

    def window(self, tokens: int, turn: int, widest: int) -> Fidelity:
        """`tokens` tokens from the start of a window of `widest` tokens; `turn` moves the window on.

        Windows do not overlap; after the last whole one the first comes again.
        """
        width = self.count(widest)
        start = turn % (self.sequences // width) * width
        return Fidelity(0, start, start + min(self.count(tokens), width), self._cut(tokens))

    def fresh(self, tokens: int, seed: int) -> Fidelity:
        """`tokens` tokens drawn anew by `seed`, which must not be 0."""
        return Fidelity(seed, 0, self.count(tokens), self._cut(tokens))

    def _cut(self, tokens: int) -> int:
        """Tokens of each sequence: a sequence is cut short only where less than one is asked for."""
        return min(max(tokens, 2), self.length)


@dataclass(frozen=True, slots=True)
class Workload:
    """Most trials a search will ask, and the tokens of all their profiles."""

    trials: int = 0
    tokens: int = 0

    def add(self, trials: int, fidelity: Fidelity) -> "Workload":
        """This and `trials` more at one fidelity."""
        return Workload(self.trials + trials, self.tokens + trials * fidelity.tokens)

    def plus(self, other: "Workload") -> "Workload":
        """This and another."""
        return Workload(self.trials + other.trials, self.tokens + other.tokens)


def slope_tokens(space: Space, fidelity: Fidelity) -> int:
    """What slopes count as: tokens times the forward passes that they cost, one more for the dense model."""
    return (passes(space) + 1) * fidelity.tokens
