"""The method `frontier`: one search for the whole front, from slopes of all levels and exact allocation.

Slopes around the dense model give every budget a first profile. Then follow rounds, each for one budget:

1. The budget's best profile becomes the base of new slopes. Backward passes give, to second order, how much the fitness
   changes when one unit of the base moves to another level.
2. Exact allocation finds the profile of smallest summed change within the budget. It does so several times: with the
   second-order term scaled up or down, and with single steps from the base only. These profiles are the proposals.
3. Proposals and base are compared on the beginning of the archive's prefix. The best proposal is measured on the whole
   prefix if it is better than the base, and is kept if it is better there too.
4. A round without improvement draws many exchanges of levels and measures those of smallest predicted change. It then
   proposes the best of them and combinations of them.
5. If that fails as well, the budget's next round takes twice the tokens.

Changes are measured one at a time instead of taken from slopes if the settings say so, if all units are branches, or if
slopes around the dense model are not finite. They are measured around the dearest profile first, then around each
budget's best profile. All measurements are merged into one table of errors for the allocation, with most weight on
those around bases of similar fitness (`merging.py`).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from ...evaluators.slopes.slope_trial import Slopes
from ...evaluators.trial import Fidelity
from ...spaces.space import Limits, Profile, Space
from ..allocation.allocator import Allocator
from ..allocation.moves import Moves, dress
from ..asking.calibration_sequences import CalibrationSequences, Workload
from ..asking.method import MethodConfig, Task
from ..asking.turns import Request, Turns, read_fitness, read_profiles, starting_profiles, write_fitness
from ..methods.mutation import Mutation
from .measured_guide import MeasuredGuide
from .merging import Floats
from .slope_guide import SlopeGuide, has_slopes

SCREENED = 16
"""Number of exchanges drawn for each one that is measured."""

STEPS = 2
"""Number of measured single-unit changes that are themselves proposed to each budget that they fit, the best first."""

EXCHANGES = 5
"""Largest number of proposals that combine measured exchanges; they combine 1, 2, 4, 8 and 16 exchanges."""


class FrontierConfig(MethodConfig):
    """Settings of the method `frontier`.

    Attributes:
        sensitivities: source of the predicted changes. `slopes` takes them from backward passes where these exist;
            `measured` evaluates one change at a time.
        tokens: calibration tokens of the first sensitivities. The default is the size of the archive's prefix, but at
            most 16,384 tokens for slopes and 2,048 for measured changes.
        around: calibration tokens of the later sensitivities of a budget without a failed round. The default is the
            size of the archive's prefix, but at most 16,384 tokens for slopes and 4,096 for measured changes.
        offspring: number of exchanges of levels that a round measures when its allocations improve nothing.
        check: calibration tokens on which proposals are compared before the best one of each budget is measured on the
            archive's prefix.
        rounds: largest number of rounds for each budget.
        patience: number of rounds without improvement after which a budget gets no more rounds. Each of them doubles
            the tokens of the budget's next round. A budget also gets no round while the slopes that it would ask for
            are known already.
    """

    serves: ClassVar[Literal["all", "one"]] = "all"
    summary: ClassVar[str] = (
        "all budgets together: estimates the effect of every level by backward passes, allocates exactly, and repeats both around the best profile of each budget"
    )

    method: Literal["frontier"] = "frontier"
    sensitivities: Literal["slopes", "measured"] = "slopes"
    tokens: PositiveInt | None = None
    around: PositiveInt | None = None
    offspring: NonNegativeInt = 24
    check: PositiveInt = 16384
    rounds: NonNegativeInt = 16
    patience: PositiveInt = 4

    def build(self, task: Task) -> "FrontierSearcher":
        """Build the searcher for a task."""
        return FrontierSearcher(self, task.space, task.budgets, task.calibration, task.seed, task.starts)


Phase = Literal["survey", "front", "look around", "exchange", "check", "confirm", "done"]


class FrontierSearcher(Turns):
    """Searches for the best profiles of all budgets together.

    Args:
        config: settings of the method.
        space: space of the profiles.
        limits: limits of every budget, at least one of them.
        calibration: calibration sequences to draw on.
        rng_seed: seed of the random exchanges of levels.
        start: profiles to measure at the beginning beside the uniform ones.

    Attributes:
        order: indices of the budgets in the order of their rounds. Budgets of similar cost are far apart in the order.
    """

    def __init__(
        self,
        config: FrontierConfig,
        space: Space,
        limits: Sequence[Limits],
        calibration: CalibrationSequences,
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
        super().__init__(space, calibration, rng_seed, list(dict.fromkeys(p for own in starts for p in own)))
        self.config = config
        self._moves = Moves(space, self._budgets[0])
        sloped = config.sensitivities == "slopes" and has_slopes(space)
        self._guide: SlopeGuide | MeasuredGuide = SlopeGuide(space) if sloped else self._measured_guide()
        self._mutations = [Mutation(space, each, "none", False, 1) for each in self._budgets]
        self._by_cost = sorted(range(len(self._budgets)), key=lambda i: tuple(self._budgets[i].values()))
        self.order = [self._by_cost[i] for i in _scattered(len(self._budgets))]
        self._best = [space.uniform(each) for each in self._budgets]
        self._seen = 0
        self._phase: Phase = "survey"
        self._turn = 0
        self._rounds = [0] * len(self._budgets)
        self._failures = [0] * len(self._budgets)
        self._before = math.inf
        self._offspring: list[Profile] = []
        self._proposed: dict[int, list[Profile]] = {}

    def _measured_guide(self) -> MeasuredGuide:
        return MeasuredGuide(self.space, self._moves.dearest, self.calibration.length)

    def workload(self) -> Workload:
        """Return an upper bound of the trials and tokens of the search."""
        config, budgets, calibration = self.config, len(self._budgets), self.calibration
        served = min(3, budgets) if self._guide.shared else 1
        proposals = max(served * (self._guide.proposals + STEPS), EXCHANGES)
        found = Workload().add(len(self.starts) + budgets, calibration.archive)
        found = found.plus(self._guide.workload(calibration.prefix(self._tokens(0, first=True)), first=True))
        for n in range(config.rounds):
            around = calibration.prefix(self._tokens(min(n, config.patience - 1)))
            steps = 2 if config.offspring else 1
            one = self._guide.workload(around, first=False)
            one = one.add(steps * (served + proposals), self._check).add(steps * served, calibration.archive)
            one = one.add(1 + config.offspring, calibration.prefix(self._tokens(0)))
            for _ in range(budgets):
                found = found.plus(one)
        return found

    def _tokens(self, failures: int, *, first: bool = False) -> int:
        """Return the number of calibration tokens of the sensitivities, which doubles with every failed round."""
        config, sloped = self.config, not self._guide.shared
        most = 16_384 if sloped else 2_048 if first else 4_096
        given = config.tokens if first else config.around
        return (given or min(self.calibration.archive.tokens, most)) << failures

    @property
    def _check(self) -> Fidelity:
        """The sequences on which proposals are compared: the beginning of the archive's prefix.

        Values of archived profiles are known there already and are not measured again.
        """
        fidelity = self.calibration.prefix(self.config.check)
        return fidelity if fidelity.stop < self.calibration.archive.stop else self.calibration.archive

    @property
    def _budget(self) -> int:
        """Index of the budget that the present round is for."""
        return self.order[self._turn % len(self._budgets)]

    @property
    def _served(self) -> list[int]:
        """The indices of the budgets that the present round proposes profiles for.

        A round that uses slopes serves only its own budget. A round that measures changes one at a time also serves the
        next smaller and the next larger budget.
        """
        if not self._guide.shared:
            return [self._budget]
        place = self._by_cost.index(self._budget)
        return self._by_cost[max(place - 1, 0) : place + 2]

    def incumbent(self, budget: int) -> Profile:
        """Return the best archived profile within a budget, or its uniform profile if none is archived."""
        for profile, fitness in islice(self.archived.items(), self._seen, None):
            for i, limits in enumerate(self._budgets):
                if fitness < self._value(self._best[i]) and self.space.fits(profile, limits):
                    self._best[i] = dress(self.space, profile, self.space.uniform(limits))
        self._seen = len(self.archived)
        return self._best[budget]

    def _value(self, profile: Profile) -> float:
        return self.archived.get(self.space.canonical(profile), math.inf)

    def _next(self) -> list[Request]:
        match self._phase:
            case "survey":
                for profile in self.starts:
                    self._promote(profile)
                return self._guide.requests(None, self._window())
            case "look around":
                return self._guide.requests(self.incumbent(self._budget), self._window())
            case "exchange":
                return [(p, self._window()) for p in [self.incumbent(self._budget), *self._offspring]]
            case "front" | "confirm":
                return [(p, self.calibration.archive) for p in _distinct(self._proposed)]
            case "check":
                rivals = {i: [self.incumbent(i), *profiles] for i, profiles in self._proposed.items()}
                return [(p, self._check) for p in _distinct(rivals)]
            case "done":
                return []

    def _window(self) -> Fidelity:
        """Return the sequences for the sensitivities of this turn.

        They lie after the archive's prefix if there are enough sequences, so that proposals are not chosen on the text
        that ranks them. The window moves on with every turn.
        """
        failures = self._failures[self._budget] if self._phase == "look around" else 0
        tokens = self._tokens(failures, first=self._phase == "survey")
        width = self.calibration.count(tokens)
        behind = -(-self.calibration.archive.stop // width)
        free = max(self.calibration.sequences // width - behind, 0)
        return self.calibration.window(tokens, behind + self._turn % free if free else self._turn, tokens)

    def _learn_slopes(self, slopes: Sequence[Slopes | None]) -> None:
        (found,) = slopes
        assert isinstance(self._guide, SlopeGuide)
        if found is not None:
            base = None if self._phase == "survey" else self.incumbent(self._budget)
            self._guide.take(base, self._window(), found)
            self._go_on()
        elif self._phase == "survey":
            self._guide = self._measured_guide()
        else:
            self._end_round()

    def _learn(self, profiles: list[Profile], fitness: list[float]) -> None:
        measured = dict(zip(profiles, fitness, strict=True))
        match self._phase:
            case "survey" | "look around":
                assert isinstance(self._guide, MeasuredGuide)
                # The incumbent may have changed since it was asked, as answers at the archive's fidelity are archived.
                base = None if self._phase == "survey" else profiles[0]
                self._guide.take(base, self._window(), measured)
                self._go_on(measured)
            case "exchange":
                self._propose({self._budget: self._exchanged(profiles[0], measured)}, "check")
            case "check" if self._check != self.calibration.archive:
                self._choose(measured)
            case _:
                self._end_round()

    def _go_on(self, measured: Mapping[Profile, float] = MappingProxyType({})) -> None:
        """Propose the optima of the guide's tables and the best of the changes that were measured.

        Args:
            measured: fitness of each profile that was measured for the guide; empty for slopes.
        """
        if self._phase == "survey":
            allocator = self._allocator(self._guide.first_errors())
            self._propose({i: [allocator.best(each)] for i, each in enumerate(self._budgets)}, "front")
            return
        proposals = {}
        for i in self._served:
            base = self.incumbent(i)
            tables = self._guide.tables(base, self._value(base))
            fitting = [profile for profile in measured if self.space.fits(profile, self._budgets[i])]
            proposals[i] = [self._allocator(errors_UL).best(self._budgets[i]) for errors_UL in tables]
            proposals[i] += sorted(fitting, key=measured.__getitem__)[:STEPS]
        self._propose(proposals, "check")

    def _allocator(self, errors_UL: Floats) -> Allocator:
        rows = zip(self.space.units, errors_UL, strict=True)
        return Allocator(self.space, [row[: len(unit.levels)].tolist() for unit, row in rows])

    def _propose(self, proposals: Mapping[int, Sequence[Profile]], phase: Phase) -> None:
        """Enter a phase with the proposals that are not archived yet; end the round if there are none."""
        self._proposed = {}
        for budget, profiles in proposals.items():
            models = {self.space.canonical(p): p for p in profiles}
            if fresh := [p for key, p in models.items() if key not in self.archived]:
                self._proposed[budget] = fresh
        if self._proposed:
            self._phase = phase
        else:
            self._end_round()

    def _choose(self, measured: Mapping[Profile, float]) -> None:
        """Have the best proposal of each budget measured for the archive if it beats the budget's incumbent.

        Args:
            measured: fitness of all proposals and incumbents on the same sequences.
        """
        chosen = {}
        for budget, profiles in self._proposed.items():
            best = min(profiles, key=measured.__getitem__)
            if measured[best] < measured[self.incumbent(budget)]:
                chosen[budget] = [best]
        self._propose(chosen, "confirm")

    def _breed(self) -> list[Profile]:
        """Draw many exchanges of levels around the budget's best profile and return those of smallest predicted error.

        None of them is archived.
        """
        own, wanted = self._budget, self.config.offspring
        drawn = (
            self._mutations[own].offspring(self.incumbent(own), SCREENED * wanted, self.rng) if wanted else []
        )
        fresh = [p for p in drawn if self.space.canonical(p) not in self.archived]
        errors_UL = self._guide.errors(self.incumbent(own), self._value(self.incumbent(own)))
        units_U = np.arange(len(self.space.units))
        levels = [np.array(p) for p in fresh]
        predicted = [float(errors_UL[units_U, n][self._moves.active(n)].sum()) for n in levels]
        return [fresh[i] for i in np.argsort(predicted, kind="stable")[:wanted]]

    def _exchanged(self, base: Profile, measured: Mapping[Profile, float]) -> list[Profile]:
        """Combine the best 1, 2, 4, 8 and 16 exchanges that improve the base and change different units.

        An exchange is left out if it changes a unit that a better one changes, or if the combination would exceed the
        budget.
        """
        limits = self._budgets[self._budget]
        better = sorted(
            (p for p in self._offspring if measured[p] < measured[base]), key=measured.__getitem__
        )
        together, found = [base], []
        for profile in better:
            joined = _joined(base, together[-1], profile)
            if joined is not None and self.space.fits(joined, limits):
                together.append(joined)
        for count in (1 << n for n in range(EXCHANGES)):
            found += together[count : count + 1]
        return found

    def _end_round(self) -> None:
        """Count the round and start the next one, for the next budget that is not finished.

        A round without improvement first tries exchanges of levels, if it has not done so.
        """
        if self._phase not in ("survey", "front"):
            own = self._budget
            better = self._value(self.incumbent(own)) < self._before
            self._offspring = [] if better or self._offspring else self._breed()
            if self._offspring:
                self._phase = "exchange"
                return
            self._rounds[own] += 1
            self._failures[own] += not better
            self._turn += 1
            self._guide.forget(but=[self.incumbent(i) for i in range(len(self._budgets))])
        for _ in self._budgets:
            own = self._budget
            self._phase = "look around"
            known = self._guide.knows(self.incumbent(own), self._window())
            if (
                self._rounds[own] < self.config.rounds
                and self._failures[own] < self.config.patience
                and not known
            ):
                self._before = self._value(self.incumbent(own))
                return
            self._turn += 1
        self._phase = "done"

    def _save(self) -> dict[str, Any]:
        return {
            "phase": self._phase,
            "turn": self._turn,
            "rounds": self._rounds,
            "failures": self._failures,
            "before": write_fitness(self._before),
            "measured": self._guide.shared,
            "guide": self._guide.state_dict(),
            "offspring": [list(p) for p in self._offspring],
            "proposed": [[i, [list(p) for p in profiles]] for i, profiles in self._proposed.items()],
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self._best, self._seen = [self.space.uniform(each) for each in self._budgets], 0
        self._phase = state["phase"]
        self._turn = state["turn"]
        self._rounds, self._failures = list(state["rounds"]), list(state["failures"])
        self._before = read_fitness(state["before"])
        self._guide = self._measured_guide() if state["measured"] else SlopeGuide(self.space)
        self._guide.load_state_dict(state["guide"])
        self._offspring = read_profiles(state["offspring"])
        self._proposed = {i: read_profiles(profiles) for i, profiles in state["proposed"]}


def _joined(base: Profile, first: Profile, second: Profile) -> Profile | None:
    """Return the base with the changes of both profiles, or None if some unit is changed by both."""
    if any(a != b != c for a, b, c in zip(first, base, second, strict=True)):
        return None
    return tuple(c if a == b else a for a, b, c in zip(first, base, second, strict=True))


def _scattered(count: int) -> list[int]:
    """Return 0..count-1 sorted by their reversed bits, so that neighbouring numbers are far apart."""
    bits = max((count - 1).bit_length(), 1)
    return sorted(range(count), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))


def _distinct(proposed: Mapping[int, Sequence[Profile]]) -> list[Profile]:
    """Return the profiles of all budgets without repetitions."""
    return list(dict.fromkeys(p for profiles in proposed.values() for p in profiles))
