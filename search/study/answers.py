"""Answers to trials: what is known comes from the journals, the rest from the workers."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from ...evaluators.journal.journal import Journal, key_of_values
from ...evaluators.trial import Evaluation, Fidelity, Trial, joined_slopes
from ...spaces.space import Profile, Space
from ...workers.pool import WorkerPool

_COUNTED = "calibration"
"""The data set whose tokens are told of while they are measured."""


class Answers:
    """Evaluates trials and keeps every value.

    Args:
        pool: workers that evaluate what is not known.
        journal: keeps every value of this run; known values are never evaluated again.
        space: gives profiles their keys.
        data: fingerprint of each data set by name.
        library: values that other runs measured under the same fingerprint; what is used is copied into the journal.

    Attributes:
        on_answer: told of the calibration tokens measured so far by the present call.
    """

    def __init__(
        self,
        pool: WorkerPool,
        journal: Journal,
        *,
        space: Space,
        data: Mapping[str, str],
        library: Journal | None = None,
    ) -> None:
        self.pool = pool
        self.journal = journal
        self.space = space
        self.on_answer: Callable[[int], None] = lambda tokens: None
        self._data = data
        self._library = library
        self._last_keys: dict[tuple[Profile, str], str] = {}

    def evaluate(self, trials: Sequence[Trial]) -> list[Evaluation]:
        """Return evaluations in the order of `trials`."""
        failed: dict[str, str] = {}
        fresh: dict[tuple[str, Fidelity], Evaluation] = {}
        measured = 0
        keys = self._by_profile(trials)
        for evaluation in self.pool.run(self._missing(trials, keys)):
            key = keys[evaluation.trial.profile]
            self.journal.append(key, evaluation)
            if evaluation.trial.fidelity.data == _COUNTED:
                measured += evaluation.trial.fidelity.tokens
                self.on_answer(measured)
            if evaluation.error is not None:
                failed[key] = evaluation.error
            else:
                fresh[key, evaluation.trial.fidelity] = evaluation
        return [self._answer(trial, keys[trial.profile], failed, fresh) for trial in trials]

    def slopes(self, trials: Sequence[Trial]) -> list[Evaluation]:
        """Answer trials that ask for slopes, which the journal does not keep."""
        parts: dict[int, list[Evaluation]] = {trial.number: [] for trial in trials}
        for part in self.pool.run(trials):
            parts[part.trial.number].append(part)
        return [joined_slopes(trial, parts[trial.number]) for trial in trials]

    def missing(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return what the workers must measure: no position of a model twice, whichever trials ask for it."""
        return self._missing(trials, self._by_profile(trials))

    def key(self, profile: Profile, data: str) -> str:
        """The journal's key: the model that `profile` builds and the sequences it is measured on."""
        return key_of_values(self.space, profile, self._data[data])

    def keys(self, trials: Iterable[Trial]) -> list[str]:
        """The key of each trial; the keys of the last call are kept, because a step needs them again."""
        wanted = [(trial.profile, trial.fidelity.data) for trial in trials]
        self._last_keys = {
            place: self._last_keys.get(place) or self.key(*place) for place in dict.fromkeys(wanted)
        }
        return [self._last_keys[place] for place in wanted]

    def _by_profile(self, trials: Sequence[Trial]) -> dict[Profile, str]:
        return dict(zip((trial.profile for trial in trials), self.keys(trials), strict=True))

    def _answer(
        self,
        trial: Trial,
        key: str,
        failed: Mapping[str, str],
        fresh: Mapping[tuple[str, Fidelity], Evaluation],
    ) -> Evaluation:
        if (answer := fresh.get((key, trial.fidelity))) is not None:
            return Evaluation(trial, answer.values, answer.cross_entropy)
        known = self.journal.lookup(key, trial)
        if known is not None:
            return known
        return Evaluation(trial, (), (), error=failed.get(key, "no answer came"))

    def _missing(self, trials: Iterable[Trial], keys: Mapping[Profile, str]) -> list[Trial]:
        found: list[Trial] = []
        planned: dict[tuple[str, str, int, int], set[int]] = {}
        longest_first = sorted(trials, key=lambda trial: -trial.fidelity.sequences)
        for trial in longest_first:
            key, fidelity = keys[trial.profile], trial.fidelity
            taken = planned.setdefault((key, fidelity.data, fidelity.seed, fidelity.length), set())
            gaps = self.journal.missing(key, fidelity)
            if self._library is not None and self._borrow(self._library, key, trial, gaps):
                gaps = self.journal.missing(key, fidelity)
            for gap in gaps:
                rest = [i for i in range(gap.start, gap.stop) if i not in taken]
                taken.update(rest)
                found += [Trial(trial.number, trial.profile, part) for part in gap.parts(rest)]
        return found

    def _borrow(self, library: Journal, key: str, trial: Trial, gaps: Iterable[Fidelity]) -> bool:
        """Copy what other runs measured into this run's journal, so that it holds all that was used."""
        borrowed = False
        for gap in gaps:
            pairs = enumerate(library.known(key, gap), gap.start)
            for part in gap.parts(i for i, pair in pairs if pair is not None):
                known = library.lookup(key, Trial(trial.number, trial.profile, part))
                if known is not None:
                    self.journal.append(key, known)
                borrowed = True
        return borrowed
