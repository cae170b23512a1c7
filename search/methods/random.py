"""The search method `random`: a baseline that any other method has to beat with equally many tokens."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from ...spaces.space import Limits, Profile, Space
from ..allocation.moves import Moves
from ..asking.calibration_sequences import CalibrationSequences, Workload
from ..asking.method import MethodConfig, Task
from ..asking.turns import Request, Turns, read_fitness, read_profiles, starting_profiles, write_fitness
from .mutation import distinct
from .state import sample


class RandomConfig(MethodConfig):
    """Settings of `random`.

    Attributes:
        samples: number of random profiles that are measured.
        tokens: number of calibration tokens that each profile is measured on.
        finalists: number of best profiles that are measured again on the calibration prefix by which the archive ranks
            profiles.
        batch: number of profiles that are drawn before they are measured.
    """

    summary: ClassVar[str] = "random profiles within the budget"

    method: Literal["random"] = "random"
    samples: PositiveInt = 256
    tokens: PositiveInt = 16384
    finalists: PositiveInt = 4
    batch: PositiveInt = 64

    def build(self, task: Task) -> "RandomSearcher":
        """Build the searcher for a task."""
        return RandomSearcher(self, task.space, task.limits, task.calibration, task.seed, task.start)


class RandomSearcher(Turns):
    """A searcher that measures independent random profiles, and the best of them again at the archive's fidelity.

    Args:
        config: settings of the method.
        space: space of the profiles.
        limits: limits that no profile exceeds.
        calibration: calibration sequences to measure on.
        rng_seed: seed of all random numbers.
        start: profiles that are measured besides the uniform profile.
    """

    def __init__(
        self,
        config: RandomConfig,
        space: Space,
        limits: Limits,
        calibration: CalibrationSequences,
        rng_seed: int,
        start: Sequence[Profile] = (),
    ) -> None:
        super().__init__(space, calibration, rng_seed, starting_profiles(space, limits, start))
        self.config = config
        self._moves = Moves(space, limits)
        self._started = False
        self._finished = False
        self._sampled: list[Profile] = []
        self._fitness: list[float] = []

    def workload(self) -> Workload:
        """Return an upper bound of the trials and tokens of the search, which counts known values too."""
        config, calibration = self.config, self.calibration
        work = Workload().add(len(self.starts) + config.finalists, calibration.archive)
        return work.add(config.samples, calibration.prefix(config.tokens))

    def _next(self) -> list[Request]:
        if not self._started:
            return [(profile, self.calibration.archive) for profile in self.starts]
        if self._finished:
            return []
        drawn = self._draw(min(self.config.batch, self.config.samples - len(self._sampled)))
        if not drawn:
            ranked = np.argsort(self._fitness, kind="stable")[: self.config.finalists]
            for i in ranked:
                self._promote(self._sampled[int(i)])
            self._finished = True
        return [(profile, self.calibration.prefix(self.config.tokens)) for profile in drawn]

    def _draw(self, count: int) -> list[Profile]:
        """Return up to `count` random profiles of models that were not drawn before."""
        return distinct(self.space, lambda: sample(self._moves, self.rng), count, self._sampled)

    def _learn(self, profiles: list[Profile], fitness: list[float]) -> None:
        if not self._started:
            self._started = True
            return
        self._sampled += profiles
        self._fitness += fitness

    def _save(self) -> dict[str, Any]:
        return {
            "started": self._started,
            "finished": self._finished,
            "sampled": [list(p) for p in self._sampled],
            "fitness": [write_fitness(f) for f in self._fitness],
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self._started, self._finished = state["started"], state["finished"]
        self._sampled = read_profiles(state["sampled"])
        self._fitness = [read_fitness(f) for f in state["fitness"]]
