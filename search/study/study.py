"""The loop of a search, which asks the searcher for trials, evaluates them and tells the searcher the answers."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ...evaluators.slopes.slope_trial import SlopeTrial
from ...evaluators.trial import Evaluation, Trial
from ...spaces.space import Limits
from ..asking.calibration_sequences import slope_tokens
from ..asking.searcher import Searcher
from .answers import Answers
from .archive import Entry, ParetoArchive
from .asked_positions import AskedPositions
from .looks import Looks

Limit = Literal["max_tokens", "max_time", "looks"]
"""Name of the limit that ended a search before the searcher had nothing more to ask."""


@dataclass
class Progress:
    """Progress of a study.

    Attributes:
        steps: number of asks that were answered.
        evaluations: number of trials that needed at least one position not yet counted for their model; trials for
            slopes do not count.
        tokens: calibration tokens that guided the search, without the teacher's. Every position of a model counts
            once, and slopes count as `slope_tokens`.
        slope_tokens: calibration tokens of slopes, times the number of forward passes that slopes cost.
        teacher_tokens: calibration tokens that went through the teacher.
        seconds: seconds spent in steps and looks, over all sessions of the run.
        curve: pairs of `total_tokens` and best fitness so far, one after each improvement, by name of the budget.
    """

    steps: int = 0
    evaluations: int = 0
    tokens: int = 0
    slope_tokens: int = 0
    teacher_tokens: int = 0
    seconds: float = 0.0
    curve: dict[str, list[list[float]]] = field(default_factory=dict)

    @property
    def total_tokens(self) -> int:
        """The tokens that guided the search, the teacher's included."""
        return self.tokens + self.teacher_tokens


class Study:
    """One search, which may be interrupted after any step and resumed.

    Args:
        searcher: searcher that proposes the trials.
        answers: object that evaluates trials and keeps their values.
        archive: archive of the models that were evaluated at its fidelity.
        budgets: limits of each budget by name, for the progress curve.
        teacher: whether the fitness needs a teacher, whose tokens count in this case.
        max_tokens: most tokens of the search, the teacher's included; a step that would exceed them is not begun.
        max_time: number of seconds after which no step is begun.
        looks: looks at validation text, taken between steps. No step is begun once they say that the search should
            end and the last searcher of a series has its turn.

    Attributes:
        progress: counts of steps, evaluations, tokens and seconds so far.
        finished: whether the searcher has nothing more to ask, or a limit was reached.
        stopped: name of the limit that ended the search, or None.
    """

    def __init__(
        self,
        searcher: Searcher,
        answers: Answers,
        archive: ParetoArchive,
        *,
        budgets: Mapping[str, Limits],
        teacher: bool = True,
        max_tokens: int | None = None,
        max_time: float | None = None,
        looks: Looks | None = None,
    ) -> None:
        self.searcher = searcher
        self.answers = answers
        self.archive = archive
        self.budgets = budgets
        self.teacher = teacher
        self.max_tokens = max_tokens
        self.max_time = max_time
        self.looks = looks
        self.progress = Progress(curve={name: [] for name in budgets})
        self.finished = False
        self.stopped: Limit | None = None
        self._asked = 0
        self._positions = AskedPositions()

    def run(self, on_step: Callable[["Study"], None] = lambda study: None) -> None:
        """Do steps until the searcher has nothing more to ask or a limit is reached.

        Args:
            on_step: function that is called with this study after each step.
        """
        while not self.finished and self.step():
            on_step(self)

    def step(self) -> bool:
        """Ask the searcher for trials, evaluate them and tell the searcher; return False if there was nothing to do."""
        began = time.perf_counter()
        asked = self._ask()
        slopes = [trial for trial in asked if isinstance(trial, SlopeTrial)]
        trials = [trial for trial in asked if not isinstance(trial, SlopeTrial)]
        keys = self.answers.keys(trials)
        profile_tokens, teacher_tokens = self._positions.new_tokens(trials, keys)
        teacher_tokens *= self.teacher
        new_slopes = sum(slope_tokens(self.answers.space, trial.fidelity) for trial in slopes)
        self.stopped = self._reached(profile_tokens + teacher_tokens + new_slopes) if asked else None
        if not asked or self.stopped:
            self.finished = True
            return False
        evaluations = self.answers.evaluate(trials)
        for trial, key in zip(trials, keys, strict=True):
            self.progress.evaluations += bool(self._positions.note(key, trial.fidelity))
        self._asked = max([self._asked, *(trial.number + 1 for trial in asked)])
        self.progress.tokens += profile_tokens + new_slopes
        self.progress.slope_tokens += new_slopes
        self.progress.teacher_tokens += teacher_tokens
        told = {e.trial.number: e for e in (*evaluations, *self.answers.slopes(slopes))}
        self.searcher.tell([told[trial.number] for trial in asked])
        self._keep(evaluations)
        self.progress.seconds += time.perf_counter() - began
        return True

    def _keep(self, evaluations: Sequence[Evaluation]) -> None:
        """Update archive, curve and looks with evaluations, and take a look if one is due."""
        newest = self.archive.newest(self.archive.add(evaluations))
        self.progress.steps += 1
        self._note_curve(newest)
        if self.looks is not None:
            self.looks.note(newest)
            if self.looks.due(self.progress.total_tokens):
                self.looks.take(self.progress.total_tokens, self.answers.evaluate)

    def _ask(self) -> list[Trial]:
        """Return the searcher's next trials.

        If they come from the next searcher of a series, the looks count from zero again.
        """
        leg = self.searcher.leg
        asked = self.searcher.ask()
        if self.looks is not None and self.searcher.leg != leg:
            self.looks.restart()
        return asked

    def _reached(self, new_tokens: int) -> Limit | None:
        """Return the limit that forbids a step of `new_tokens` tokens, or None."""
        if self.looks is not None and self.looks.over and self.searcher.final:
            return "looks"
        if self.max_time is not None and self.progress.seconds >= self.max_time:
            return "max_time"
        tokens = self.progress.total_tokens + new_tokens
        return "max_tokens" if self.max_tokens is not None and tokens > self.max_tokens else None

    def _note_curve(self, added: Sequence[Entry]) -> None:
        for name, limits in self.budgets.items():
            best = min((entry.fitness for entry in added if entry.fits(limits)), default=math.inf)
            curve = self.progress.curve[name]
            if best < (curve[-1][1] if curve else math.inf):
                curve.append([self.progress.total_tokens, best])

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the study as JSON values, without the values of profiles, which are in the journal."""
        return {
            "searcher": self.searcher.state_dict(),
            "progress": asdict(self.progress),
            "archive": [list(entry.profile) for entry in self.archive.entries],
            "asked": self._asked,
            "finished": self.finished,
            "looks": self.looks and self.looks.state_dict(),
        }

    def resume(self, state: Mapping[str, Any]) -> bool:
        """Restore the state that `state_dict` returned.

        Values that the journal received later are known, but the searcher has not been told of them. Whether the search
        is finished is decided again, because limits may have been raised in the meantime.

        Args:
            state: state of the study, as the checkpoint holds it.

        Returns:
            True, or False if the journal has lost a value that the state depends on. In this case nothing is changed.
            The study then starts from its beginning and comes to the same result. Values that the journal still holds
            are not measured again.
        """
        fidelity, journal = self.archive.fidelity, self.answers.journal
        archive = [
            journal.lookup(
                self.answers.key(tuple(profile), fidelity.data), Trial(0, tuple(profile), fidelity)
            )
            for profile in state["archive"]
        ]
        positions = AskedPositions()
        tokens = sum(
            positions.note(record.key, record.fidelity)
            for record in journal.history()
            if record.number < state["asked"] and record.fidelity.data == fidelity.data
        )
        if None in archive or tokens != state["progress"]["tokens"] - state["progress"].get(
            "slope_tokens", 0
        ):
            return False
        self.searcher.load_state_dict(state["searcher"])
        self.progress = Progress(**state["progress"])
        self._asked, self._positions = state["asked"], positions
        self.archive.add(evaluation for evaluation in archive if evaluation is not None)
        if self.looks is not None:
            self.looks.note(self.archive.entries)
            if looks := state.get("looks"):
                self.looks.load_state_dict(looks)
        return True
