"""The search method `dp`: dynamic programming over the errors of every level of every unit.

The errors are measured or given. They are assumed to add up over the units.

References:
    SPDY (arXiv 2201.13096) for the dynamic program over layer errors. Measuring the end-to-end divergence of one unit
    at a time in place of layer errors is common practice in mixed-precision quantisation (HAWQ, arXiv 1905.03696).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from ...spaces.space import Limits, Profile, Space
from ..allocation.allocation import Errors, PredictedFront
from ..allocation.allocator import Allocator
from ..allocation.moves import Moves
from ..allocation.sensitivity import Probe, Sensitivity, probes
from ..asking.calibration_sequences import CalibrationSequences, Workload
from ..asking.method import MethodConfig, Task
from ..asking.turns import Request, Turns, starting_profiles


class DPConfig(MethodConfig):
    """Settings of `dp`.

    Attributes:
        errors: source of the errors. `kl` measures the fitness of the whole model with one unit at a time at another
            level. `nmse` takes the layer errors of the level database, which needs no trials before the result.
        base: profile of all other units while one unit is measured in the first round: `best` (the most expensive level
            of every unit), `uniform` (the uniform profile) or `current` (the first start profile, or without one the
            uniform profile).
        tokens: number of calibration tokens of each measurement.
        rounds: largest number of times that all units are measured. Each round after the first measures around the best
            profile so far, on other calibration sequences. The search of a budget ends after a round that finds no
            better profile.
        trust_region: whether rounds after the first measure and choose only levels one step from the best profile so
            far.
        max_states: about the largest number of states of the dynamic program. If sums of costs can take more values,
            the program keeps only one state in each cell of nearby costs. Costs stay exact.
    """

    serves: ClassVar[Literal["all", "one"]] = "all"
    summary: ClassVar[str] = (
        "all budgets together: measures each layer at each level once, then allocates exactly"
    )

    method: Literal["dp"] = "dp"
    errors: Literal["kl", "nmse"] = "kl"
    base: Literal["best", "uniform", "current"] = "best"
    tokens: PositiveInt = 8192
    rounds: PositiveInt = 1
    trust_region: bool = True
    max_states: PositiveInt = 2**18

    def build(self, task: Task) -> "DPSearcher":
        """Build the searcher for a task."""
        return DPSearcher(
            self, task.space, task.budgets, task.calibration, task.seed, task.start, task.errors
        )


def layer_errors(space: Space, errors: Mapping[str, Mapping[str, float]]) -> list[list[float]]:
    """Return errors given by name and label as one row per unit with one error per level, as `allocate` takes them.

    Levels whose error is known by definition may be missing. `dense` and `keep` have error 0. A dropped branch has the
    relative error 1 for each of its linear layers.

    Args:
        space: space of the units.
        errors: error of every level by unit name and label.

    Raises:
        ValueError: a level other than `dense`, `keep` and `drop` has no error.
    """
    rows = []
    for unit in space.units:
        known = {"dense": 0.0, "keep": 0.0, "drop": float(max(len(unit.modules), 1))}
        known |= errors.get(unit.name, {})
        for level in unit.levels:
            if level.label not in known:
                raise ValueError(
                    f"unit {unit.name!r} has no error for level {level.label!r}; build the level database with "
                    "errors or use errors: kl"
                )
        rows.append([known[level.label] for level in unit.levels])
    return rows


class DPSearcher(Turns):
    """A searcher that minimises the sum of the units' errors, for one budget or for several at once.

    In the first round all budgets share one set of measurements.

    Args:
        config: settings of the method.
        space: space of the profiles.
        limits: limits of one budget, or a list with the limits of every budget; each gets a profile.
        calibration: calibration sequences to measure on.
        rng_seed: unused number, because the method is deterministic.
        start: profiles within the first budget that are measured besides the uniform profiles.
        errors: layer error of every level by unit name and label, needed for `errors: nmse`.

    Attributes:
        sensitivity: measurements of the last round, around the base of its last budget; None before the first round.
    """

    def __init__(
        self,
        config: DPConfig,
        space: Space,
        limits: Limits | Sequence[Limits],
        calibration: CalibrationSequences,
        rng_seed: int,
        start: Sequence[Profile] = (),
        errors: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        self._budgets: list[Limits] = [limits] if isinstance(limits, Mapping) else list(limits)
        if not self._budgets or not all(self._budgets):
            raise ValueError("dp needs a limit; give at least one budget")
        uniforms = [p for each in self._budgets for p in starting_profiles(space, each, ())]
        firsts = starting_profiles(space, self._budgets[0], start)
        super().__init__(space, calibration, rng_seed, list(dict.fromkeys([*firsts, *uniforms])))
        self.config = config
        self._first = firsts[min(1, len(firsts) - 1)]
        self.sensitivity: Sensitivity | None = None
        self._layer_errors: Errors | None = None
        if config.errors == "nmse":
            if errors is None:
                raise ValueError("errors: nmse needs the layer errors of a level database; use errors: kl")
            self._layer_errors = layer_errors(space, errors)
        self._phase: Literal["measure", "check", "done"] = "check" if self._layer_errors else "measure"
        self._round = 0
        self._current: list[Profile] = [space.uniform(each) for each in self._budgets]
        self._open = list(range(len(self._budgets)))
        self._proposed: list[Profile] = []
        if self._layer_errors is not None:
            allocator = self._allocator(self._layer_errors)
            self._proposed = [allocator.best(each) for each in self._budgets]

    def workload(self) -> Workload:
        """Return the largest numbers of trials and tokens that the search can ask for.

        Later rounds are counted as if they measured every level.
        """
        work = Workload().add(len(self.starts), self.calibration.archive)
        work = work.add(len(self._budgets), self.calibration.archive)
        if self._layer_errors is not None:
            return work
        fidelity = self.calibration.prefix(self.config.tokens)
        moves = sum(len(unit.levels) - 1 for unit in self.space.units)
        for turn in range(self.config.rounds):
            bases = 1 if turn == 0 else len(self._budgets)
            work = work.add(bases * (1 + moves), fidelity).add(bases * bool(turn), self.calibration.archive)
        return work

    def predicted(self) -> PredictedFront:
        """Return the front of predicted error against cost, from the layer errors or from `sensitivity`.

        The cost is that of the first limit's kind. The front ignores all other limits, such as minimum counts. Where
        there are other limits, the search finds its profiles by integer programming, and they may be worse than the
        front.

        Raises:
            ValueError: the errors have to be measured, and the first measurements are not told yet.
        """
        kind = next(iter(self._budgets[0]))
        if self._layer_errors is not None:
            return self._allocator(self._layer_errors).front(kind)
        if self.sensitivity is None:
            raise ValueError(
                "no trial is measured yet; `tell` the first evaluations before asking for the front"
            )
        return self._allocator(self.sensitivity.errors(self.space)).front(kind)

    def _allocator(self, errors: Errors) -> Allocator:
        return Allocator(self.space, errors, self.config.max_states)

    def _bases(self) -> list[Profile]:
        """Return the profiles that this round measures around.

        In the first round this is one profile for all budgets, later the best profile of each budget still searched.
        """
        if self._round:
            return [self._current[i] for i in self._open]
        match self.config.base:
            case "best":
                return [Moves(self.space, self._budgets[0]).dearest]
            case "uniform":
                return [self.starts[0]]
            case "current":
                return [self._first]

    def _probes(self, base: Profile) -> list[Probe]:
        return probes(self.space, base, near=self._round > 0 and self.config.trust_region)

    def _next(self) -> list[Request]:
        archive = self.calibration.archive
        own: list[Request] = []
        if self._phase == "measure":
            fidelity = self.calibration.window(self.config.tokens, self._round, self.config.tokens)
            for base in self._bases():
                own += [(p, fidelity) for p in [base, *(probe.profile for probe in self._probes(base))]]
        elif self._phase == "check":
            own = [(profile, archive) for profile in self._proposed]
        if self._round == 0 and not self.archived:
            for profile in self.starts:
                self._promote(profile)
        return own

    def _learn(self, _profiles: list[Profile], fitness: list[float]) -> None:
        if self._phase == "measure":
            self._propose(fitness)
        else:
            self._judge()

    def _propose(self, fitness: list[float]) -> None:
        """Choose a profile for each budget still searched from the fitness of the bases and their probes."""
        allocators, at = [], 0
        for base in self._bases():
            found = self._probes(base)
            measured = list(zip(found, fitness[at + 1 : at + 1 + len(found)], strict=True))
            tokens = self.calibration.prefix(self.config.tokens).tokens
            self.sensitivity = Sensitivity.of(self.space, base, tokens, fitness[at], measured)
            allocators.append(self._allocator(self.sensitivity.errors(self.space)))
            at += 1 + len(found)
        if len(allocators) == 1:
            allocators *= len(self._open)
        self._proposed = [
            allocator.best(self._budgets[i]) for allocator, i in zip(allocators, self._open, strict=True)
        ]
        self._phase = "check"

    def _judge(self) -> None:
        """Accept the proposed profiles that improve, and end the search after the last round.

        After the first round, a budget whose proposed profile is no better is not searched further.
        """
        still = []
        for budget, profile in zip(self._open, self._proposed, strict=True):
            before = self._value(self._current[budget])
            if self._round == 0:
                self._current[budget] = self._best_within(self._budgets[budget])
                still.append(budget)
            elif self._value(profile) < before:
                self._current[budget] = profile
                still.append(budget)
        self._open, self._round = still, self._round + 1
        measured = self._layer_errors is None and self._round < self.config.rounds
        self._phase = "measure" if measured and still else "done"

    def _value(self, profile: Profile) -> float:
        return self.archived.get(self.space.canonical(profile), math.inf)

    def _best_within(self, limits: Limits) -> Profile:
        known = [*self.starts, *self._proposed]
        fitting = [profile for profile in known if self.space.fits(profile, limits)]
        return min(fitting, key=self._value)

    def _save(self) -> dict[str, Any]:
        return {
            "phase": self._phase,
            "round": self._round,
            "current": [list(p) for p in self._current],
            "open": list(self._open),
            "proposed": [list(p) for p in self._proposed],
            "sensitivity": None if self.sensitivity is None else self.sensitivity.to_json(),
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self._phase = state["phase"]
        self._round = state["round"]
        self._current = [tuple(p) for p in state["current"]]
        self._open = list(state["open"])
        self._proposed = [tuple(p) for p in state["proposed"]]
        record = state["sensitivity"]
        self.sensitivity = None if record is None else Sensitivity.from_json(record)
