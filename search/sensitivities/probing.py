"""The measured score `kl`: the change of fitness when one unit at a time moves to another level."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from ...evaluators.trial import Fidelity, Trial
from ...spaces.space import Profile
from ...spaces.storage.files import digest
from ...workers.pool import LocalPool
from ..allocation.moves import Moves
from ..allocation.sensitivity import Sensitivity, probes
from ..jobs.job import calibration_of
from ..run.assembly import Assembly
from ..run.event import Event, Listener
from ..site.shared_values import journals
from ..study.answers import Answers
from .level_scores import Scored, score_settings, store_score, stored_score

MEASURED = "kl"

Base = Literal["best", "uniform"] | Profile
"""Levels of the other units while one unit is measured.

`best` is the most expensive level of every unit, `uniform` the uniform profile of the first budget; a profile is also
allowed.
"""


class Probing:
    """Evaluation of profiles outside a search, as a context that closes its journal at the end.

    The journal is shared with other runs over the same levels: they use its values, and it uses theirs.

    Args:
        assembly: assembled run whose levels are built.
        folder: folder of the run's scores, which is created if it is missing.
        listen: listener that is told of progress.

    Attributes:
        evaluator: evaluator of the assembled run.
        journal: journal of all values measured here, in `folder`.
        answers: source of fitness values, from the journals or else the evaluator.
    """

    def __init__(self, assembly: Assembly, folder: Path, listen: Listener) -> None:
        self.assembly = assembly
        self.folder = folder
        self.listen = listen
        self._answered = 0
        folder.mkdir(exist_ok=True)
        self.evaluator = assembly.evaluator()
        name = f"{folder.parent.resolve().name}.sensitivities"
        self.journal, library = journals(assembly, folder / "journal.jsonl", name, self.evaluator.fingerprint)
        pool, data = LocalPool(self.evaluator), assembly.fingerprints
        self.answers = Answers(pool, self.journal, space=assembly.space, data=data, library=library)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.journal.close()

    def score(self, tokens: int, base: Base) -> Scored:
        """Return the measured score from a file of this run or a neighbouring one, or else measure and save it.

        Args:
            tokens: number of calibration tokens of each measurement.
            base: levels of the other units while one is measured.
        """
        profile = self._base(base)
        settings = score_settings(MEASURED, self.assembly) | {
            "text": self.assembly.data["calibration"].fingerprint,
            "tokens": calibration_of(self.assembly).prefix(tokens).tokens,
            "evaluation": self.evaluator.fingerprint,
            "base": digest(self.assembly.space.labels(profile)),
        }
        found = stored_score(self.folder, settings)
        if found is None:
            found = self._measured(tokens, profile)
            store_score(self.folder, settings, found)
        return found

    def fitness(self, profiles: Sequence[Profile], fidelity: Fidelity, stage: str) -> list[float]:
        """Return the fitness of each profile at one fidelity, infinite where the evaluation failed.

        The listener is told of the tokens measured, under the name `stage`.
        """
        trials = [Trial(i, profile, fidelity) for i, profile in enumerate(profiles)]
        # Values from journals take no time. Counting their tokens would show a rate that no measurement reaches.
        total = sum(trial.fidelity.tokens for trial in self.answers.missing(trials))
        if total:
            self.listen(Event(stage, 0, total))
        self._answered = 0

        def answered(tokens: int) -> None:
            self._answered = tokens
            self.listen(Event(stage, tokens, total))

        self.answers.on_answer = answered
        answers = self.answers.evaluate(trials)
        return [float("inf") if answer.error is not None else answer.fitness for answer in answers]

    def _base(self, base: Base) -> Profile:
        if isinstance(base, tuple):
            return base
        limits = self.assembly.limits[0][1]
        space = self.assembly.space
        return Moves(space, limits).dearest if base == "best" else space.uniform(limits)

    def _measured(self, tokens: int, base: Profile) -> Scored:
        space = self.assembly.space
        began = time.perf_counter()
        fidelity = calibration_of(self.assembly).prefix(tokens)
        found = probes(space, base)
        profiles = [base, *(probe.profile for probe in found)]
        known, *changed = self.fitness(profiles, fidelity, f"score {MEASURED}")
        measured = list(zip(found, changed, strict=True))
        sensitivity = Sensitivity.of(space, base, fidelity.tokens, known, measured)
        spent = (1 + len(set(map(space.canonical, profiles)))) * fidelity.tokens
        seconds = round(time.perf_counter() - began, 3)
        return Scored(MEASURED, sensitivity, spent, seconds, reused=not self._answered)
