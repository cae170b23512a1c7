"""Evaluators that fail in a chosen way; importable where Ray's workers live."""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from paretopress.evaluators.slopes.slope_trial import SlopeTrial
from paretopress.evaluators.trial import Evaluation, Trial
from paretopress.spaces.space import Profile
from paretopress.workers import Landscape
from paretopress.workers.cluster.ray_cluster import Share


@dataclass
class Mishap:
    """A landscape that meets with something when it evaluates one profile.

    Attributes:
        landscape: gives the answers.
        kind: `dies`, `raises`, `goes bad` (raises from then on), `refuses`, `hangs`, `nan`, or `slow` (0.05 s).
        profile: where; None for all.
        times: how often, over all processes.
        folder: where the times are counted.
        share: of the node's memory, which it does not need.
    """

    landscape: Landscape
    kind: str
    profile: Profile | None
    times: int
    folder: Path
    share: Share | None = None
    held: None = None
    bad: bool = False

    @property
    def fingerprint(self) -> str:
        return self.landscape.fingerprint

    def evaluate(self, trials: Iterable[Trial]) -> Iterator[Evaluation]:
        for evaluation in self.landscape.evaluate(trials):
            if self.bad:
                raise RuntimeError("bad luck for ever")
            unlucky = self.profile in (None, evaluation.trial.profile)
            yield self._met(evaluation) if unlucky and self._counted() else evaluation

    def _counted(self) -> bool:
        """Whether it happens once more."""
        for n in range(self.times):
            try:
                (self.folder / str(n)).touch(exist_ok=False)
            except FileExistsError:
                continue
            return True
        return False

    def _met(self, evaluation: Evaluation) -> Evaluation:
        match self.kind:
            case "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raises" | "goes bad":
                self.bad = self.kind == "goes bad"
                raise RuntimeError("out of luck\nand more")
            case "refuses":
                raise ValueError("the profile is no good")
            case "hangs":
                time.sleep(600)
            case "slow":
                time.sleep(0.05)
        if self.kind == "nan":
            return Evaluation(evaluation.trial, (), (), error="the fitness is not finite")
        return evaluation


def given(landscape: Landscape, share: Share, held: None) -> Landscape:
    """What opens without a mishap."""
    assert held is None
    assert 0 < share.host <= share.device == 1
    return landscape


class WithoutSlopes(Landscape):
    """Raises where slopes are asked for."""

    def evaluate(self, trials: Iterable[Trial]) -> Iterator[Evaluation]:
        for trial in trials:
            if isinstance(trial, SlopeTrial):
                raise RuntimeError("no slopes here")
            yield from super().evaluate([trial])


def cannot_open(path: Path, share: Share, held: None) -> Landscape:
    """What a worker meets whose node lacks a folder."""
    del share, held
    raise FileNotFoundError(f"no levels at {path}")
