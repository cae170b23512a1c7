"""A journal's recorded values as an evaluator."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from ...evaluators.journal.journal import Journal, key_of_values
from ...evaluators.trial import Evaluation, Trial
from ...spaces.space import Space


class Replay:
    """Answers what a journal holds, and nothing else.

    Args:
        journal: of a run, opened with that run's fingerprint.
        space: of the profiles asked.
        data: fingerprint of each data set by name, as the run had it.
    """

    def __init__(self, journal: Journal, space: Space, data: Mapping[str, str]) -> None:
        self.journal = journal
        self.space = space
        self.data = data

    @property
    def fingerprint(self) -> str:
        """The journal's."""
        return self.journal.fingerprint

    def evaluate(self, trials: Iterable[Trial]) -> Iterator[Evaluation]:
        """One evaluation per trial, in order.

        Raises:
            LookupError: a value was not recorded, the message says of which profile and sequences; or slopes are
                asked.
        """
        for trial in trials:
            if trial.slopes:
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
