"""An evaluator that answers with the values of a journal."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from ...evaluators.journal.journal import Journal, key_of_values
from ...evaluators.slopes.slope_trial import SlopeTrial
from ...evaluators.trial import Evaluation, Trial
from ...spaces.space import Space


class Replay:
    """Answers trials with the values that a journal holds, and refuses all others.

    Args:
        journal: journal of a run, opened with that run's fingerprint.
        space: space of the profiles in the trials.
        data: fingerprint of each data set of the run, by the name of the set.
    """

    def __init__(self, journal: Journal, space: Space, data: Mapping[str, str]) -> None:
        self.journal = journal
        self.space = space
        self.data = data

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the journal."""
        return self.journal.fingerprint

    def evaluate(self, trials: Iterable[Trial]) -> Iterator[Evaluation]:
        """Yield one evaluation per trial, in the order of the trials.

        Raises:
            LookupError: the journal lacks a value, and the message names the profile and the sequences; or a trial asks
                for slopes, which no journal holds.
        """
        for trial in trials:
            if isinstance(trial, SlopeTrial):
                raise LookupError(
                    f"{self.journal.path} holds values, no slopes, and trial {trial.number} asks for slopes; replay "
                    "with `sensitivities: measured`"
                )
            key = key_of_values(self.space, trial.profile, self.data[trial.fidelity.data])
            found = self.journal.lookup(key, trial)
            if found is None:
                raise LookupError(self._missing(key, trial))
            yield found

    def _missing(self, key: str, trial: Trial) -> str:
        fidelity = trial.fidelity
        gaps = ", ".join(f"{gap.start}..{gap.stop}" for gap in self.journal.missing(key, fidelity))
        labels = Counter(self.space.describe(trial.profile).values())
        profile = ", ".join(f"{count} x {label}" for label, count in sorted(labels.items()))
        return (
            f"{self.journal.path} holds no values of trial {trial.number} ({profile}) on {fidelity.data} sequences "
            f"{gaps} (seed {fidelity.seed}, length {fidelity.length}); replay searches that were recorded, or "
            "record this one"
        )
