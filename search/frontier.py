"""The whole front from one search: measured changes of single units, exact allocation, and again around the result.

One set of measurements around the dearest profile gives every budget a first profile. Then, round after round, one
budget's best profile is measured around: what its neighbouring levels and some offspring are worth there. All
measurements so far, near ones weighing most, give a table for each budget, whose exact optimum one step away, taken
more or less boldly, is tried beside the best offspring; what is better on the archive's prefix is kept.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from ..evaluators.trial import Fidelity
from ..spaces.space import Limits, Profile, Space
from .allocation import allocate, allocate_limits
from .budget import Pool, Workload
from .merging import Measurement, Table, merge
from .moves import Moves, dress
from .mutation import Mutation
from .sensitivity import Probe, Sensitivity, probes
from .turns import Request, Turns, read_fitness, read_profiles, starting_profiles, write_fitness

CAUTION = (0.0, 0.1, 0.3)
"""Standard deviations of a measured change that a unit's move has to gain to be made, one proposal each."""

SCREENED = 8
"""Offspring that are drawn for one that is measured; the table chooses."""

KEPT = 2
"""Offspring that are tried beside the allocations."""


class FrontierConfig(BaseModel):
    """Settings of `frontier`.

    Attributes:
        tokens: of each measurement around the dearest profile.
        around: of each later measurement.
        check: with which proposals are compared before the best of each budget is measured on the archive's prefix.
        offspring: mutants that are measured in each round.
        cycles: times that every budget is measured around.
        patience: cycles in a row without improvement after which the search ends.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["frontier"] = "frontier"
    tokens: PositiveInt = 2048
    around: PositiveInt = 4096
    check: PositiveInt = 16384
    offspring: NonNegativeInt = 32
    cycles: NonNegativeInt = 8
    patience: PositiveInt = 3


Phase = Literal["survey", "front", "measure", "check", "confirm", "done"]


class FrontierSearcher(Turns):
    """Profiles for all budgets, improved together.

    Args:
        config: settings.
        space: of the profiles.
        limits: of each budget.
        pool: calibration sequences.
        rng_seed: of the offspring.
        start: profiles that are measured beside the uniform ones.

    Attributes:
        order: places of the budgets in the order of their rounds; neighbours in cost are far apart in time.
    """

    def __init__(
        self,
        config: FrontierConfig,
        space: Space,
        limits: Sequence[Limits],
        pool: Pool,
        rng_seed: int,
        start: Sequence[Profile] = (),
    ) -> None:
        self._budgets = list(limits)
        if not self._budgets or not all(self._budgets):
            raise ValueError("frontier needs a limit; give at least one budget")
        within = [[p for p in start if space.fits(p, each)] for each in self._budgets]
        if len(self._budgets) == 1:
            within = [list(start)]
        starts = [
            starting_profiles(space, each, own) for each, own in zip(self._budgets, within, strict=True)
        ]
        super().__init__(space, pool, rng_seed, list(dict.fromkeys(p for own in starts for p in own)))
        self.config = config
        self._moves = Moves(space, self._budgets[0])
        self._mutations = [Mutation(space, each, "none", False, 3) for each in self._budgets]
        self._by_cost = sorted(range(len(self._budgets)), key=lambda i: tuple(self._budgets[i].values()))
        self.order = [self._by_cost[i] for i in _scattered(len(self._budgets))]
        self._best = [space.uniform(each) for each in self._budgets]
        self._seen = 0
        self._phase: Phase = "survey"
        self._round = 0
        self._stale = 0
        self._before: list[float] = []
        self._sensitivities: list[Sensitivity] = []
        self._measurements: list[Measurement] = []
        self._offspring: list[Profile] = []
        self._proposed: dict[int, list[Profile]] = {}

    def workload(self) -> Workload:
        """Most trials and tokens, every level within reach of each step."""
        config, budgets, pool = self.config, len(self._budgets), self.pool
        work = Workload().add(len(self.starts) + budgets, pool.archive)
        moves = sum(len(unit.levels) - 1 for unit in self.space.units)
        near = sum(max(len(level.neighbours) for level in unit.levels) for unit in self.space.units)
        work = work.add(1 + moves, pool.prefix(config.tokens))
        served = min(3, budgets)
        for _ in range(config.cycles * budgets):
            work = work.add(1 + near + config.offspring, pool.prefix(config.around))
            work = work.add(served * (1 + len(CAUTION) + KEPT), self._check).add(served, pool.archive)
        return work

    @property
    def _check(self) -> Fidelity:
        """The beginning of the archive's prefix, so that what is known there is not measured again."""
        fidelity = self.pool.prefix(self.config.check)
        return fidelity if fidelity.stop < self.pool.archive.stop else self.pool.archive

    @property
    def _budget(self) -> int:
        """The budget whose round it is."""
        return self.order[self._round % len(self._budgets)]

    @property
    def _served(self) -> list[int]:
        """Budgets that the round's measurements are used for: its own and those beside it."""
        place = self._by_cost.index(self._budget)
        return self._by_cost[max(place - 1, 0) : place + 2]

    def incumbent(self, budget: int) -> Profile:
        """The best archived profile within a budget, its uniform one before any."""
        for profile, fitness in islice(self.archived.items(), self._seen, None):
            for i, limits in enumerate(self._budgets):
                if fitness < self._value(self._best[i]) and self.space.fits(profile, limits):
                    self._best[i] = dress(self.space, profile, self.space.uniform(limits))
        self._seen = len(self.archived)
        return self._best[budget]

    def _value(self, profile: Profile) -> float:
        return self.archived.get(self.space.canonical(profile), math.inf)

    def _next(self) -> list[Request]:
        archive = self.pool.archive
        match self._phase:
            case "survey":
                fidelity = self._window(0)
                base = self._moves.dearest
                own = [(p, fidelity) for p in [base, *(probe.profile for probe in self._probes(base))]]
                for profile in self.starts:
                    self._promote(profile)
                return own
            case "front" | "confirm":
                return [(p, archive) for p in _distinct(self._proposed)]
            case "measure":
                fidelity, base = self._window(self._round + 1), self.incumbent(self._budget)
                around = [base, *(probe.profile for probe in self._probes(base)), *self._offspring]
                return [(p, fidelity) for p in around]
            case "check":
                rivals = {i: [self.incumbent(i), *profiles] for i, profiles in self._proposed.items()}
                return [(p, self._check) for p in _distinct(rivals)]
            case "done":
                return []

    def _window(self, turn: int) -> Fidelity:
        """Sequences behind the archive's prefix while there are any, so that choices are made on other text."""
        tokens = self.config.around if turn else self.config.tokens
        widest = max(self.config.tokens, self.config.around)
        width = self.pool.count(widest)
        behind = -(-self.pool.archive.stop // width)
        free = max(self.pool.sequences // width - behind, 0)
        return self.pool.window(tokens, behind + turn % free if free else turn, widest)

    def _probes(self, base: Profile) -> list[Probe]:
        return probes(self.space, base, near=self._phase != "survey")

    def _learn(self, profiles: list[Profile], fitness: list[float]) -> None:
        match self._phase:
            case "survey":
                self._add(self._moves.dearest, self.config.tokens, fitness)
                self._propose(
                    {i: [self._allocated(i, self._table(i))] for i in range(len(self._budgets))}, "front"
                )
            case "measure":
                self._add(profiles[0], self.config.around, fitness)
                self._propose(self._proposals(dict(zip(profiles, fitness, strict=True))), "check")
            case "check" if self._check != self.pool.archive:
                self._choose(dict(zip(profiles, fitness, strict=True)))
            case _:
                self._end_round()

    def _propose(self, proposals: Mapping[int, Sequence[Profile]], phase: Phase) -> None:
        """Go on with those that are not archived yet; without any the round is over."""
        self._proposed = {}
        for budget, profiles in proposals.items():
            models = {self.space.canonical(p): p for p in profiles}
            if fresh := [p for key, p in models.items() if key not in self.archived]:
                self._proposed[budget] = fresh
        if self._proposed:
            self._phase = phase
        else:
            self._end_round()

    def _add(self, base: Profile, tokens: int, fitness: Sequence[float]) -> None:
        """Keep the measurements around a base: its own fitness first, then its probes'."""
        found = self._probes(base)
        measured = list(zip(found, fitness[1 : 1 + len(found)], strict=True))
        count = self.pool.prefix(tokens).tokens
        self._keep(Sensitivity.of(self.space, base, count, fitness[0], measured))

    def _keep(self, sensitivity: Sensitivity) -> None:
        self._sensitivities.append(sensitivity)
        self._measurements.append(Measurement.of(self.space, sensitivity, self.pool.length))

    def _table(self, budget: int) -> Table:
        fitness = self._value(self.incumbent(budget))
        return merge(self.space, self._measurements, fitness, self._moves.dearest)

    def _allocated(self, budget: int, table: Table, caution: float | None = None) -> Profile:
        """The optimum of a budget's table; with caution, one step from the incumbent at most.

        Every unit that leaves the incumbent then has to gain `caution` spreads.
        """
        limits, uniform = self._budgets[budget], self.space.uniform(self._budgets[budget])
        errors_UL = table.errors_UL
        if caution is not None:
            near_UL = np.full_like(errors_UL, math.inf)
            for u, (unit, level) in enumerate(zip(self.space.units, self.incumbent(budget), strict=True)):
                near_UL[u, list(unit.levels[level].neighbours)] = caution * table.spread
                near_UL[u, level] = 0.0
            errors_UL = errors_UL + near_UL
        errors = [
            row[: len(unit.levels)].tolist() for unit, row in zip(self.space.units, errors_UL, strict=True)
        ]
        if len(limits) > 1:
            return dress(self.space, allocate_limits(self.space, errors, limits), uniform)
        ((kind, limit),) = limits.items()
        return dress(self.space, allocate(self.space, errors, kind).best(limit), uniform)

    def _proposals(self, measured: Mapping[Profile, float]) -> dict[int, list[Profile]]:
        """For each budget served bold and cautious allocations, for the round's own its best offspring too."""
        found = {}
        for budget in self._served:
            table = self._table(budget)
            found[budget] = [self._allocated(budget, table, caution) for caution in CAUTION]
        born = [p for p in self._offspring if measured[p] < math.inf]
        found[self._budget] += sorted(born, key=measured.__getitem__)[:KEPT]
        return found

    def _choose(self, measured: Mapping[Profile, float]) -> None:
        """Confirm the best proposal of each budget that beats its incumbent on the same sequences."""
        chosen = {}
        for budget, profiles in self._proposed.items():
            best = min(profiles, key=measured.__getitem__)
            if measured[best] < measured[self.incumbent(budget)]:
                chosen[budget] = [best]
        self._propose(chosen, "confirm")

    def _end_round(self) -> None:
        """Begin the next round, or end the search after the last one or when patience is over."""
        values = self._incumbent_values()
        if self._phase not in ("survey", "front"):
            better = any(now < before for now, before in zip(values, self._before, strict=True))
            self._stale = 0 if better else self._stale + 1
            self._round += 1
        budgets = len(self._budgets)
        if self._round == self.config.cycles * budgets or self._stale == self.config.patience * budgets:
            self._phase = "done"
            return
        self._before = values
        self._phase = "measure"
        self._offspring = self._breed()

    def _incumbent_values(self) -> list[float]:
        return [self._value(self.incumbent(i)) for i in range(len(self._budgets))]

    def _breed(self) -> list[Profile]:
        """Mutants of the incumbent that the table finds best of many, none of them archived."""
        parent, wanted = self.incumbent(self._budget), self.config.offspring
        drawn = self._mutations[self._budget].offspring(parent, SCREENED * wanted, self.rng) if wanted else []
        fresh = [p for p in drawn if self.space.canonical(p) not in self.archived]
        errors_UL = self._table(self._budget).errors_UL
        levels = [np.array(p) for p in fresh]
        units_U = np.arange(len(self.space.units))
        predicted = [float(errors_UL[units_U, n][self._moves.active(n)].sum()) for n in levels]
        return [fresh[i] for i in np.argsort(predicted, kind="stable")[:wanted]]

    def _save(self) -> dict[str, Any]:
        return {
            "phase": self._phase,
            "round": self._round,
            "stale": self._stale,
            "before": [write_fitness(f) for f in self._before],
            "sensitivities": [s.to_json() for s in self._sensitivities],
            "offspring": [list(p) for p in self._offspring],
            "proposed": [[i, [list(p) for p in profiles]] for i, profiles in self._proposed.items()],
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self._best, self._seen = [self.space.uniform(each) for each in self._budgets], 0
        self._phase = state["phase"]
        self._round = state["round"]
        self._stale = state["stale"]
        self._before = [read_fitness(f) for f in state["before"]]
        self._sensitivities, self._measurements = [], []
        for record in state["sensitivities"]:
            self._keep(Sensitivity.from_json(record))
        self._offspring = read_profiles(state["offspring"])
        self._proposed = {i: read_profiles(profiles) for i, profiles in state["proposed"]}


def _scattered(count: int) -> list[int]:
    """0..count-1 in the order of their reversed bits, so that neighbours are far apart."""
    bits = max((count - 1).bit_length(), 1)
    return sorted(range(count), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))


def _distinct(proposed: Mapping[int, Sequence[Profile]]) -> list[Profile]:
    """All profiles, each once."""
    return list(dict.fromkeys(p for profiles in proposed.values() for p in profiles))
