"""The measured score: what changing one unit at a time does to fitness, with a journal of its own."""

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
"""What the other units are at while one is measured: the dearest level, uniform at the first budget, or a profile."""


class Probing:
    """Evaluates profiles outside any search; a context that closes the journal.

    The journal is linked where runs over the same levels look for values, and theirs are used.

    Args:
        assembly: a run whose levels are built.
        folder: of the scores.
        listen: told of progress.
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
        """The measured score, from its file or that of a run beside this one if these fit, else measured and saved."""
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
        """Of each profile at one fidelity; infinite where it failed. Tokens measured are told of under `stage`."""
        trials = [Trial(i, profile, fidelity) for i, profile in enumerate(profiles)]
        # What journals answer takes no time: counted, it would make a rate that nothing goes at.
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
