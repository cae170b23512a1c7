"""Random search: what any other method has to beat at equal tokens."""

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
        samples: number of random profiles.
        tokens: calibration tokens with which each profile is measured.
        finalists: number of the best that are measured again on the archive's prefix.
        batch: profiles that are asked for at once.
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
    """Independent random profiles within the limits; the best few are measured properly.

    Args:
        config: settings of the method.
        space: the profiles to draw from.
        limits: limits that no profile exceeds.
        calibration: calibration sequences to draw on.
        rng_seed: root of all random numbers.
        start: profiles that are measured beside the uniform one.
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
        """Most trials and tokens, known values not subtracted."""
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
        """At most `count` models not drawn before."""
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
