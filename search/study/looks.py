"""Looks at validation: whether what a search still gains on calibration text holds on other text.

A search fits its calibration text. At first that is what one wants; after some tokens only the calibration value
falls. So now and then the best profile of every budget is measured on the validation sequences, which decide nothing
else before the final choice. When looks in a row find nothing better than the last profiles that were, the search
spends its tokens on fitting, and may end.

Shapes: S validation sequences, D documents.
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
"""Tokens of search between looks, as a share of those before."""

SHARE = 0.25
"""Most validation tokens of a look, as a share of the search's tokens since the look before."""

Measure = Callable[[Sequence[Trial]], list[Evaluation]]


@dataclass(frozen=True, slots=True)
class Look:
    """The best profile of one budget at one look.

    Attributes:
        tokens: that had guided the search.
        budget: name of the budget.
        model: key of what the profile builds.
        calibration: fitness on the archive's prefix.
        validation: fitness on all validation sequences; None where the model failed there.
    """

    tokens: int
    budget: str
    model: str
    calibration: float
    validation: float | None


class Looks:
    """Takes looks between the steps of a search and says when to end it.

    A look is taken once the search's tokens have grown by half, and by four times what the look costs, since the
    last one, and a budget has a new best profile. So the number of looks is logarithmic in tokens, they add at most
    a quarter to the tokens of the search, and the clock plays no part.

    The profiles of a look are compared with those of the last look that was an improvement, by one paired sign-flip
    test over documents at 5 %: a document's gain is its relative gain averaged over budgets, because budgets share
    sequences and tokens, and with one test each, one of many would always seem to improve. Gains too small to show
    at one look add up, since what is compared with stays. With fewer than 20 documents nothing is concluded.

    Args:
        space: gives models their keys.
        budgets: limits by name.
        validation: sequences of validation text.
        seed: of the test.
        patience: looks in a row without improvement after which the search should end; None: it never should.
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
        """Whether validation has not followed for as many looks as there is patience."""
        return self.patience is not None and self._stale >= self.patience

    def restart(self) -> None:
        """Have new patience, because another method or budget has its turn."""
        self._stale = 0

    def note(self, entries: Iterable[Entry]) -> None:
        """Take in what was added to the archive."""
        for entry in entries:
            for name, limits in self._budgets.items():
                best = self._best.get(name)
                if entry.fits(limits) and (best is None or _rank(entry) < _rank(best)):
                    self._best[name] = entry
                    self._changed.add(name)

    def due(self, tokens: int) -> bool:
        """Whether a look should be taken after so many tokens of search."""
        last = self.taken[-1].tokens if self.taken else 0
        cost = len(self._changed) * self._fidelity.tokens
        return bool(self._changed) and tokens - last >= max(GROWTH * last, cost / SHARE)

    def take(self, tokens: int, measure: Measure) -> None:
        """Measure the best profile of every budget and compare."""
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
        """All looks, and one more at the end of the search, which leaves no trace if the search goes on later."""
        last = self.taken[-1].tokens if self.taken else -1
        if not self._best or tokens == last:
            return self.taken
        profiles = [entry.profile for entry in self._best.values()]
        return self.taken + self._rows(tokens, self._measure(profiles, measure))

    def _measure(self, profiles: Sequence[Profile], measure: Measure) -> dict[Profile, Evaluation]:
        """What has a finite fitness on the validation sequences."""
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
        """Relative gain of each document over the reference (D,), averaged over budgets; None without any."""
        gains = []
        for name, profile in self._reference.items():
            if profile in found and now[name] in found:
                before_D = document_means(found[profile].values, self._documents)
                after_D = document_means(found[now[name]].values, self._documents)
                gains.append((before_D - after_D) / (float(before_D.mean()) or 1.0))
        return np.mean(gains, axis=0) if gains else None

    def state_dict(self) -> dict[str, Any]:
        """What was looked at, as JSON values; the values of sequences stand in the journal."""
        return {
            "taken": [asdict(look) for look in self.taken],
            "changed": sorted(self._changed),
            "reference": {name: list(profile) for name, profile in self._reference.items()},
            "stale": self._stale,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken, after `note` of the archive's entries."""
        self.taken = [Look(**look) for look in state["taken"]]
        self._changed = set(state["changed"])
        self._reference = {name: tuple(profile) for name, profile in state["reference"].items()}
        self._stale = state["stale"]


def _rank(entry: Entry) -> tuple[float, int, Profile]:
    """The order in which the archive ranks entries."""
    return entry.fitness, entry.cost, entry.profile


def look_rows(looks: Iterable[Look], uniform: Mapping[str, Look]) -> list[LookRow]:
    """Looks beside the values of each budget's uniform profile.

    Texts differ in difficulty, so what can be compared is a value's share of the uniform profile's on the same text;
    `gap` is how much less of it is left on calibration than on validation.
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
