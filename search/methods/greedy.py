"""The search method `greedy`: it lowers one unit at a time by measured fitness, as BlockPruner does with branches."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from ...spaces.space import Limits, Profile, Space
from ..allocation.moves import Bools, Ints, Moves, as_profile
from ..allocation.sensitivity import moved
from ..asking.calibration_sequences import CalibrationSequences, Workload
from ..asking.method import MethodConfig, Task
from ..asking.turns import Request, Turns, read_fitness, starting_profiles, write_fitness
from .state import State


class GreedyConfig(MethodConfig):
    """Settings of `greedy`.

    Attributes:
        tokens: number of calibration tokens that each profile with one more unit lowered or raised is measured on.
    """

    summary: ClassVar[str] = "lowers or removes one unit at a time by measured fitness"

    method: Literal["greedy"] = "greedy"
    tokens: PositiveInt = 16384

    def build(self, task: Task) -> "GreedySearcher":
        """Build the searcher for a task."""
        return GreedySearcher(self, task.space, task.limits, task.calibration, task.seed, task.start)


class GreedySearcher(Turns):
    """A searcher that lowers the most expensive profile step by step to the limits, then raises units in the room left.

    Each step down measures the profile with each unit in turn moved to its nearest cheaper level, or dropped. It takes
    the profile whose fitness rises least per cost saved, or in a space of branches only the one of lowest fitness. Each
    step up then measures every single raise within the limits and takes the best one, as long as the fitness improves.

    Args:
        config: settings of the method.
        space: space of the profiles.
        limits: limits that the result keeps; profiles on the way down exceed them.
        calibration: calibration sequences to measure on.
        rng_seed: unused number, because the method is deterministic.
        start: profiles that are measured besides the uniform profile.

    References:
        BlockPruner: Fine-grained Pruning for Large Language Models (arXiv 2406.10594), algorithm 1.
    """

    def __init__(
        self,
        config: GreedyConfig,
        space: Space,
        limits: Limits,
        calibration: CalibrationSequences,
        rng_seed: int,
        start: Sequence[Profile] = (),
    ) -> None:
        super().__init__(space, calibration, rng_seed, starting_profiles(space, limits, start))
        self.config = config
        self._limits = dict(limits)
        self._moves = Moves(space, limits)
        self._current = self._moves.dearest
        self._fitness = math.inf
        self._phase: Literal["starts", "down", "up", "done"] = "starts"

    def workload(self) -> Workload:
        """Return the numbers of trials and tokens of a search down to the cheapest profile, with one step up.

        Every step counts as if it measured a move of every unit.
        """
        units = len(self.space.units)
        steps = sum(len(unit.levels) - 1 for unit in self.space.units)
        work = Workload().add(len(self.starts) + 1, self.calibration.archive)
        return work.add(1 + units * (steps + 1), self.calibration.prefix(self.config.tokens))

    def _next(self) -> list[Request]:
        fidelity = self.calibration.prefix(self.config.tokens)
        if self._phase == "starts":
            own = [(profile, self.calibration.archive) for profile in self.starts]
            return [*own, (self._current, fidelity)]
        if self._phase == "down":
            if self.space.fits(self._current, self._limits):
                self._phase = "up"
            elif options := self._options(up=False):
                return [(profile, fidelity) for profile in options]
            else:
                self._current, self._phase = self.space.cheapest(self._limits), "done"
        if self._phase == "up":
            if options := self._options(up=True):
                return [(profile, fidelity) for profile in options]
            self._phase = "done"
        self._promote(self._current)
        return []

    def _options(self, *, up: bool) -> list[Profile]:
        """Return for each unit that can move the current profile with this unit one smallest change of cost up or down.

        If no single step of any unit goes down, moves to any lower level are considered.
        """
        levels_U = np.array(self._current, np.int64)
        if up:
            return self._smallest(State.at(self._moves, levels_U).raises().T)
        near, far = (
            State.at(self._moves, levels_U, far=far).lowerings().T & self._keeping(levels_U)
            for far in (False, True)
        )
        return self._smallest(near) or self._smallest(far)

    def _keeping(self, levels_U: Ints) -> Bools:
        """Return which moves (U, L) exceed no limit that holds now and raise no cost that is over its limit.

        Without this condition, costs that oppose each other could fall and rise in turns for ever.
        """
        total_K = self._moves.total(levels_U)
        most_K = np.maximum(self._moves.limit_K, total_K)
        keeps_KUL = self._moves.deltas(levels_U) <= (most_K - total_K)[:, None, None]
        return np.asarray(keeps_KUL.all(axis=0), np.bool_)

    def _smallest(self, open_UL: Bools) -> list[Profile]:
        levels_U = np.array(self._current, np.int64)
        size_UL = np.abs(self._moves.direction(self._moves.deltas(levels_U)))
        size_UL = np.where(open_UL, size_UL, math.inf)
        units = np.flatnonzero(open_UL.any(axis=1)).tolist()
        return [moved(as_profile(levels_U), u, int(size_UL[u].argmin())) for u in units]

    def _learn(self, profiles: list[Profile], fitness: list[float]) -> None:
        if self._phase == "starts":
            self._fitness, self._phase = fitness[-1], "down"
        elif self._phase == "down":
            best = min(range(len(profiles)), key=lambda i: self._price(profiles[i], fitness[i]))
            self._current, self._fitness = profiles[best], fitness[best]
        else:
            best = int(np.argmin(fitness))
            if fitness[best] < self._fitness:
                self._current, self._fitness = profiles[best], fitness[best]
            else:
                self._phase = "done"

    def _price(self, profile: Profile, fitness: float) -> float:
        """Return the rise of fitness per cost saved, or the fitness itself in a space of branches only."""
        if self._moves.droppable_U.all() or math.isinf(fitness):
            return fitness
        saved = self._size(self._current) - self._size(profile)
        rise = fitness - (self._fitness if self._fitness < math.inf else 0.0)
        return rise / saved if saved > 0 else math.inf

    def _size(self, profile: Profile) -> float:
        costs = [self.space.cost(profile, kind) for kind in self._moves.kinds]
        return math.fsum(c / max(int(m), 1) for c, m in zip(costs, self._moves.limit_K, strict=True))

    def _save(self) -> dict[str, Any]:
        return {
            "phase": self._phase,
            "current": list(self._current),
            "fitness": write_fitness(self._fitness),
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self._phase = state["phase"]
        self._current = tuple(state["current"])
        self._fitness = read_fitness(state["fitness"])
