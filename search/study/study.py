"""The loop: ask the searcher, answer from the journal, run what is missing, tell, keep."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ...evaluators.journal.journal import Journal, key_of_values
from ...evaluators.trial import Evaluation, Fidelity, Trial, joined_slopes
from ...spaces.space import Profile, Space
from ...workers.pool import WorkerPool
from ..asking.calibration_sequences import slope_tokens
from ..asking.searcher import Searcher
from ..asking.series import SeriesSearcher
from .archive import Entry, ParetoArchive
from .looks import Looks

_Positions = dict[tuple[str, int], set[int]]
"""Key of a model (or name of the data, for the teacher) and seed to the positions that were asked."""

Limit = Literal["max_tokens", "max_time", "looks"]
"""What may end a search before it has nothing more to ask."""


@dataclass
class Progress:
    """How far a study is.

    Attributes:
        steps: number of asks that were answered.
        evaluations: profiles evaluated at some fidelity, without those asked twice.
        tokens: calibration tokens asked of profiles, every position of a profile once, and those of slopes.
        slope_tokens: those of slopes: tokens times the forward passes that they cost.
        teacher_tokens: calibration tokens that the teacher had to see.
        seconds: spent in steps and looks, over all sessions of the run.
        curve: (tokens, best fitness within the budget so far) after each improvement, by budget.
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
        """Tokens that guided the search, the teacher's included."""
        return self.tokens + self.teacher_tokens


class Study:
    """One search.

    Args:
        searcher: proposes the trials.
        pool: workers that evaluate the trials.
        archive: keeps what was evaluated on its fixed prefix.
        journal: keeps every value of this run; known values are never evaluated again.
        library: values that other runs measured under the same fingerprint; what is used is copied.
        space: gives profiles their keys and costs.
        data: fingerprint of each data set by name.
        budgets: limits by name, for the progress curve.
        teacher: whether the fitness needs one; only then do its tokens count.
        max_tokens: never exceeded: a step that would is not begun.
        max_time: seconds after which no step is begun.
        looks: taken between steps; no step is begun when validation no longer follows.

    Attributes:
        stopped: the limit that ended the search, or None.
        on_answer: told of the calibration tokens measured so far within the present step.
    """

    def __init__(
        self,
        searcher: Searcher,
        pool: WorkerPool,
        archive: ParetoArchive,
        journal: Journal,
        *,
        space: Space,
        data: Mapping[str, str],
        library: Journal | None = None,
        teacher: bool = True,
        budgets: Mapping[str, Mapping[str, int]],
        max_tokens: int | None = None,
        max_time: float | None = None,
        looks: Looks | None = None,
    ) -> None:
        self.searcher = searcher
        self.pool = pool
        self.archive = archive
        self.journal = journal
        self.space = space
        self.data = data
        self.library = library
        self.teacher = teacher
        self.budgets = budgets
        self.max_tokens = max_tokens
        self.max_time = max_time
        self.looks = looks
        self.progress = Progress(curve={name: [] for name in budgets})
        self.finished = False
        self.stopped: Limit | None = None
        self.on_answer: Callable[[int], None] = lambda tokens: None
        self._asked = 0
        self._known: _Positions = {}
        self._taught: _Positions = {}
        self._last_keys: dict[tuple[Profile, str], str] = {}

    def run(self, on_step: Callable[["Study"], None] = lambda study: None) -> None:
        """Step until the searcher has nothing more to ask or a limit is reached; `on_step` after each."""
        while not self.finished and self.step():
            on_step(self)

    def step(self) -> bool:
        """One ask, its answers, one tell; False when there was nothing to do."""
        began = time.perf_counter()
        asked = self._ask()
        trials = [trial for trial in asked if not trial.slopes]
        keys = self._keys(trials)
        profile_tokens, teacher_tokens = self._new_tokens(trials, keys)
        teacher_tokens *= self.teacher
        new_slopes = sum(slope_tokens(self.space, trial.fidelity) for trial in asked if trial.slopes)
        self.stopped = self._reached(profile_tokens + teacher_tokens + new_slopes) if asked else None
        if not asked or self.stopped:
            self.finished = True
            return False
        evaluations = self.evaluate(trials)
        for trial, key in zip(trials, keys, strict=True):
            self.progress.evaluations += bool(_note(self._known, self._taught, key, trial.fidelity))
        self._asked = max([self._asked, *(trial.number + 1 for trial in asked)])
        self.progress.tokens += profile_tokens + new_slopes
        self.progress.slope_tokens += new_slopes
        self.progress.teacher_tokens += teacher_tokens
        slopes = self._slopes([trial for trial in asked if trial.slopes])
        told = {e.trial.number: e for e in (*evaluations, *slopes)}
        self.searcher.tell([told[trial.number] for trial in asked])
        added = self.archive.add(evaluations)
        self.progress.steps += 1
        self._note_curve(self.archive.newest(added))
        if self.looks is not None:
            self.looks.note(self.archive.newest(added))
            if self.looks.due(self.progress.total_tokens):
                self.looks.take(self.progress.total_tokens, self.evaluate)
        self.progress.seconds += time.perf_counter() - began
        return True

    def _slopes(self, trials: Sequence[Trial]) -> list[Evaluation]:
        """Answers to trials that ask for slopes; they are not in the journal."""
        parts: dict[int, list[Evaluation]] = {trial.number: [] for trial in trials}
        for part in self.pool.run(trials):
            parts[part.trial.number].append(part)
        return [joined_slopes(trial, parts[trial.number]) for trial in trials]

    def _ask(self) -> list[Trial]:
        """The searcher's next trials; the looks have new patience when these come from the next one of a series."""
        series = self.searcher if isinstance(self.searcher, SeriesSearcher) else None
        leg = series.leg if series else 0
        asked = self.searcher.ask()
        if self.looks is not None and series is not None and series.leg != leg:
            self.looks.restart()
        return asked

    def evaluate(self, trials: Sequence[Trial]) -> list[Evaluation]:
        """Evaluations in the order of `trials`: known values from the journal, the rest from the workers."""
        failed: dict[str, str] = {}
        fresh: dict[tuple[str, Fidelity], Evaluation] = {}
        measured = 0
        keys = dict(zip((trial.profile for trial in trials), self._keys(trials), strict=True))
        for evaluation in self.pool.run(self._missing(trials, keys)):
            key = keys[evaluation.trial.profile]
            self.journal.append(key, evaluation)
            if evaluation.trial.fidelity.data == self.archive.fidelity.data:
                measured += evaluation.trial.fidelity.tokens
                self.on_answer(measured)
            if evaluation.error is not None:
                failed[key] = evaluation.error
            else:
                fresh[key, evaluation.trial.fidelity] = evaluation
        return [self._answer(trial, keys[trial.profile], failed, fresh) for trial in trials]

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

    def missing(self, trials: Sequence[Trial]) -> list[Trial]:
        """What the workers must measure: no position of a model twice, whichever trials ask for it."""
        return self._missing(
            trials, dict(zip((trial.profile for trial in trials), self._keys(trials), strict=True))
        )

    def _missing(self, trials: Iterable[Trial], keys: Mapping[Profile, str]) -> list[Trial]:
        found: list[Trial] = []
        planned: dict[tuple[str, str, int, int], set[int]] = {}
        longest_first = sorted(trials, key=lambda trial: -trial.fidelity.sequences)
        for trial in longest_first:
            key, fidelity = keys[trial.profile], trial.fidelity
            taken = planned.setdefault((key, fidelity.data, fidelity.seed, fidelity.length), set())
            gaps = self.journal.missing(key, fidelity)
            if self.library is not None and self._borrow(self.library, key, trial, gaps):
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

    def _keys(self, trials: Iterable[Trial]) -> list[str]:
        """Of each trial; those of the last call are kept, because a step needs them again."""
        wanted = [(trial.profile, trial.fidelity.data) for trial in trials]
        self._last_keys = {
            place: self._last_keys.get(place) or self.key(*place) for place in dict.fromkeys(wanted)
        }
        return [self._last_keys[place] for place in wanted]

    def key(self, profile: Profile, data: str) -> str:
        """The journal's key: the model that `profile` builds and the sequences it is measured on."""
        return key_of_values(self.space, profile, self.data[data])

    def _reached(self, new_tokens: int) -> Limit | None:
        """The limit that forbids a step of so many tokens."""
        final = not isinstance(self.searcher, SeriesSearcher) or self.searcher.final
        if self.looks is not None and self.looks.over and final:
            return "looks"
        if self.max_time is not None and self.progress.seconds >= self.max_time:
            return "max_time"
        tokens = self.progress.total_tokens + new_tokens
        return "max_tokens" if self.max_tokens is not None and tokens > self.max_tokens else None

    def _new_tokens(self, trials: Iterable[Trial], keys: Iterable[str]) -> tuple[int, int]:
        """Tokens of profiles and of the teacher that these trials add to what the run has asked before."""
        known: dict[tuple[str, int], set[int]] = {}
        taught: dict[tuple[str, int], set[int]] = {}
        tokens = teacher = 0
        for trial, key in zip(trials, keys, strict=True):
            fidelity = trial.fidelity
            positions = set(range(fidelity.start, fidelity.stop))
            place = (key, fidelity.seed)
            order = (fidelity.data, fidelity.seed)
            asked = positions.difference(self._known.get(place, ()), known.get(place, ()))
            unseen = positions.difference(self._taught.get(order, ()), taught.get(order, ()))
            tokens += fidelity.length * len(asked)
            teacher += fidelity.length * len(unseen)
            known.setdefault(place, set()).update(positions)
            taught.setdefault(order, set()).update(positions)
        return tokens, teacher

    def _note_curve(self, added: Sequence[Entry]) -> None:
        for name, limits in self.budgets.items():
            best = min((entry.fitness for entry in added if entry.fits(limits)), default=math.inf)
            curve = self.progress.curve[name]
            if best < (curve[-1][1] if curve else math.inf):
                curve.append([self.progress.total_tokens, best])

    def state_dict(self) -> dict[str, Any]:
        """Searcher, progress and the archive's profiles; their values stand in the journal."""
        return {
            "searcher": self.searcher.state_dict(),
            "progress": asdict(self.progress),
            "archive": [list(entry.profile) for entry in self.archive.entries],
            "asked": self._asked,
            "finished": self.finished,
            "looks": self.looks and self.looks.state_dict(),
        }

    def resume(self, state: Mapping[str, Any]) -> bool:
        """Continue where `state_dict` was taken; what the journal got after that is known but not yet told.

        Whether the search is finished is asked anew, because limits may have been raised since.

        Returns:
            False, with nothing changed, if the journal has lost a value that the state builds on. The study
            then runs from its beginning to the same result: what the journal still has is not measured again.
        """
        fidelity = self.archive.fidelity
        archive = [
            self.journal.lookup(self.key(tuple(profile), fidelity.data), Trial(0, tuple(profile), fidelity))
            for profile in state["archive"]
        ]
        known: _Positions = {}
        taught: _Positions = {}
        tokens = sum(
            _note(known, taught, record.key, record.fidelity)
            for record in self.journal.history()
            if record.number < state["asked"] and record.fidelity.data == fidelity.data
        )
        if None in archive or tokens != state["progress"]["tokens"] - state["progress"].get(
            "slope_tokens", 0
        ):
            return False
        self.searcher.load_state_dict(state["searcher"])
        self.progress = Progress(**state["progress"])
        self._asked, self._known, self._taught = state["asked"], known, taught
        self.archive.add(evaluation for evaluation in archive if evaluation is not None)
        if self.looks is not None:
            self.looks.note(self.archive.entries)
            if looks := state.get("looks"):
                self.looks.load_state_dict(looks)
        return True


def _note(known: _Positions, taught: _Positions, key: str, fidelity: Fidelity) -> int:
    """Note a model's and the teacher's positions as asked; the tokens that are new for the model."""
    positions = range(fidelity.start, fidelity.stop)
    here = known.setdefault((key, fidelity.seed), set())
    before = len(here)
    here.update(positions)
    taught.setdefault((fidelity.data, fidelity.seed), set()).update(positions)
    return fidelity.length * (len(here) - before)
