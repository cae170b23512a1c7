"""Answers to trials, taken from the journals where values are known and from the workers where they are not."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from ...evaluators.journal.journal import Journal, key_of_values
from ...evaluators.slopes.slope_trial import SlopeTrial, joined_slopes
from ...evaluators.trial import Evaluation, Fidelity, Trial
from ...spaces.space import Profile, Space
from ...workers.pool import WorkerPool

_COUNTED = "calibration"
"""Name of the data set whose tokens are reported while they are measured."""


class Answers:
    """Evaluates trials and keeps every value in the journal.

    Args:
        pool: workers that measure the values that are not known.
        journal: journal of this run; values that the journal holds are never measured again.
        space: space of the profiles.
        data: fingerprint of each data set by name.
        library: journal with values that other runs measured under the same fingerprint. Values that are used are
            copied into the journal of this run.

    Attributes:
        on_answer: function that is called after each answer of the workers, with the number of calibration tokens that
            the present call of `evaluate` has measured so far.
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
        """Return one evaluation per trial, in the order of `trials`."""
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

    def slopes(self, trials: Sequence[SlopeTrial]) -> list[Evaluation]:
        """Return the answers to trials that ask for slopes, in their order. The journal does not keep slopes."""
        parts: dict[int, list[Evaluation]] = {trial.number: [] for trial in trials}
        for part in self.pool.run(trials):
            parts[part.trial.number].append(part)
        return [joined_slopes(trial, parts[trial.number]) for trial in trials]

    def missing(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return the trials that the workers must measure.

        No position of a model occurs twice in them, even if several trials ask for it.
        """
        return self._missing(trials, self._by_profile(trials))

    def key(self, profile: Profile, data: str) -> str:
        """Return the journal's key of a model and a data set.

        Args:
            profile: profile that builds the model.
            data: name of the data set.
        """
        return key_of_values(self.space, profile, self._data[data])

    def keys(self, trials: Iterable[Trial]) -> list[str]:
        """Return the journal's key of each trial.

        The keys of the last call are kept in memory, because a step needs them again.
        """
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
        return Evaluation(trial, (), (), error=failed.get(key, "no worker returned a value"))

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
        """Copy values that other runs measured into this run's journal, so that it holds all values that are used.

        Returns:
            Whether the library had any value at the positions of `gaps`.
        """
        borrowed = False
        for gap in gaps:
            pairs = enumerate(library.known(key, gap), gap.start)
            for part in gap.parts(i for i, pair in pairs if pair is not None):
                known = library.lookup(key, Trial(trial.number, trial.profile, part))
                if known is not None:
                    self.journal.append(key, known)
                borrowed = True
        return borrowed
