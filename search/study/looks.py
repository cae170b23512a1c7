"""Looks at validation text, which test whether the gains of a search on calibration text hold on other text.

A search fits its profiles to the calibration text. After some tokens the fitness improves there but no longer on other
text. Therefore the best profile of every budget is measured from time to time on the validation sequences, which decide
nothing else before the final choice. If several looks in a row find no improvement on validation text, the search only
fits the calibration text, and may end.

Shapes: D documents.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...evaluators.text.packing import Sequences
from ...evaluators.trial import Evaluation, Fidelity, Trial
from ...spaces.space import Limits, Profile, Space
from ..folder.front import LookRow
from .archive import Entry
from .selection import FEWEST_DOCUMENTS, LEVEL, Floats, document_means, sign_flip

GROWTH = 0.5
"""Fewest tokens of search between two looks, as a fraction of the tokens before the first of them."""

SHARE = 0.25
"""Most validation tokens of a look, as a fraction of the tokens of search since the look before."""

Measure = Callable[[Sequence[Trial]], list[Evaluation]]


@dataclass(frozen=True, slots=True)
class Look:
    """The best profile of one budget at one look.

    Attributes:
        tokens: tokens that had guided the search by then, the teacher's included.
        budget: name of the budget.
        model: key of the model that the profile builds.
        calibration: fitness at the archive's fidelity.
        validation: fitness on all validation sequences; None if the model has no finite fitness there.
    """

    tokens: int
    budget: str
    model: str
    calibration: float
    validation: float | None


class Looks:
    """Takes looks between the steps of a search and says when the search should end.

    A look is taken when a budget has a new best profile and the tokens of the search have grown since the last look by
    half, and by four times the tokens of the new look. So the number of looks is logarithmic in the tokens, the looks
    add at most a quarter to the tokens of the search, and nothing depends on the clock.

    The profiles of a look are compared with those of the last look that was an improvement, in one paired sign-flip
    test over documents at 5 %. The gain of a document is its relative gain averaged over budgets. There is only one
    test because budgets share sequences and tokens, and with one test per budget, one of many would always seem to
    improve. Gains that are too small to show at one look add up, because the profiles compared with stay the same.
    With fewer than 20 documents there is no test.

    Args:
        space: space of the profiles.
        budgets: limits of each budget by name.
        validation: sequences of validation text.
        seed: seed of the test's random numbers.
        patience: number of looks in a row without improvement after which the search should end; None for never.

    Attributes:
        taken: looks at each budget so far, in order of tokens.
    """

    def __init__(
        self,
        space: Space,
        budgets: Mapping[str, Limits],
        validation: Sequences,
        *,
        seed: int = 0,
        patience: int | None = None,
    ) -> None:
        self.patience = patience
        self.taken: list[Look] = []
        self._space = space
        self._budgets = budgets
        self._documents = validation.documents.tolist()
        self._fidelity = Fidelity(0, 0, len(validation), validation.length, "validation")
        self._seed = seed
        self._best: dict[str, Entry] = {}
        self._changed: set[str] = set()
        self._reference: dict[str, Profile] = {}
        self._stale = 0

    @property
    def over(self) -> bool:
        """Whether `patience` looks in a row have found no improvement."""
        return self.patience is not None and self._stale >= self.patience

    def restart(self) -> None:
        """Start counting looks without improvement from zero, because another method or budget has its turn."""
        self._stale = 0

    def note(self, entries: Iterable[Entry]) -> None:
        """Update the best profile of every budget with entries that were added to the archive."""
        for entry in entries:
            for name, limits in self._budgets.items():
                best = self._best.get(name)
                if entry.fits(limits) and (best is None or _rank(entry) < _rank(best)):
                    self._best[name] = entry
                    self._changed.add(name)

    def due(self, tokens: int) -> bool:
        """Tell whether a look should be taken after `tokens` tokens of search."""
        last = self.taken[-1].tokens if self.taken else 0
        cost = len(self._changed) * self._fidelity.tokens
        return bool(self._changed) and tokens - last >= max(GROWTH * last, cost / SHARE)

    def take(self, tokens: int, measure: Measure) -> None:
        """Measure the best profile of every budget and test whether these profiles are an improvement.

        Args:
            tokens: number of tokens of search so far.
            measure: function that evaluates trials.
        """
        now = {name: entry.profile for name, entry in self._best.items()}
        found = self._measure([*now.values(), *self._reference.values()], measure)
        self.taken += self._rows(tokens, found)
        self._changed.clear()
        gains_D = self._gains(now, found)
        self._reference = {name: p for name, p in now.items() if p in found} | self._reference
        if gains_D is None or len(gains_D) < FEWEST_DOCUMENTS:
            return
        if sign_flip(gains_D, self._seed) <= LEVEL:
            self._reference |= {name: p for name, p in now.items() if p in found}
            self._stale = 0
        else:
            self._stale += 1

    def finish(self, tokens: int, measure: Measure) -> list[Look]:
        """Take a last look at the end of the search, unless one was just taken, and return all looks.

        The last look is not stored, so it has no effect if the search is continued later.

        Args:
            tokens: number of tokens of search so far.
            measure: function that evaluates trials.
        """
        last = self.taken[-1].tokens if self.taken else -1
        if not self._best or tokens == last:
            return self.taken
        profiles = [entry.profile for entry in self._best.values()]
        return self.taken + self._rows(tokens, self._measure(profiles, measure))

    def _measure(self, profiles: Sequence[Profile], measure: Measure) -> dict[Profile, Evaluation]:
        """Evaluate profiles on the validation sequences and return those with a finite fitness."""
        trials = [Trial(i, profile, self._fidelity) for i, profile in enumerate(dict.fromkeys(profiles))]
        return {e.trial.profile: e for e in measure(trials) if e.error is None and e.fitness < math.inf}

    def _rows(self, tokens: int, found: Mapping[Profile, Evaluation]) -> list[Look]:
        return [
            Look(
                tokens,
                name,
                self._space.key(self._best[name].profile),
                self._best[name].fitness,
                found[self._best[name].profile].fitness if self._best[name].profile in found else None,
            )
            for name in self._budgets
            if name in self._best
        ]

    def _gains(self, now: Mapping[str, Profile], found: Mapping[Profile, Evaluation]) -> Floats | None:
        """Return the gain of each document over the reference profiles, (D,).

        Gains are relative to the reference and averaged over budgets. The result is None if no budget has a gain.
        """
        gains = []
        for name, profile in self._reference.items():
            if profile in found and now[name] in found:
                before_D = document_means(found[profile].values, self._documents)
                after_D = document_means(found[now[name]].values, self._documents)
                gains.append((before_D - after_D) / (float(before_D.mean()) or 1.0))
        return np.mean(gains, axis=0) if gains else None

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values, without the values of sequences, which are in the journal."""
        return {
            "taken": [asdict(look) for look in self.taken],
            "changed": sorted(self._changed),
            "reference": {name: list(profile) for name, profile in self._reference.items()},
            "stale": self._stale,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned; call `note` with all entries of the archive before that."""
        self.taken = [Look(**look) for look in state["taken"]]
        self._changed = set(state["changed"])
        self._reference = {name: tuple(profile) for name, profile in state["reference"].items()}
        self._stale = state["stale"]


def _rank(entry: Entry) -> tuple[float, int, Profile]:
    """Return the key by which the archive ranks entries."""
    return entry.fitness, entry.cost, entry.profile


def look_rows(looks: Iterable[Look], uniform: Mapping[str, Look]) -> list[LookRow]:
    """Return looks with their fitness relative to that of each budget's uniform profile.

    Texts differ in difficulty, so only the ratio to the uniform profile's fitness on the same text can be compared.

    Args:
        looks: looks at validation text.
        uniform: uniform profile of each budget, measured like a look, by name of the budget.
    """
    rows = []
    for look in looks:
        against = uniform.get(look.budget)
        calibration = _share(look.calibration, against.calibration if against else None)
        validation = _share(look.validation, against.validation if against else None)
        rows.append(
            LookRow(
                tokens=look.tokens,
                budget=look.budget,
                calibration=look.calibration,
                validation=look.validation,
                calibration_of_uniform=calibration,
                validation_of_uniform=validation,
                gap=None if calibration is None or validation is None else validation - calibration,
            )
        )
    return rows


def _share(value: float | None, of: float | None) -> float | None:
    return value / of if value is not None and of else None
