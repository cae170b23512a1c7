"""The search method `evolution`: EvoPress's evolutionary search with one parent and mutation only.

The offspring of a generation are selected in stages. Each stage measures the remaining candidates on at least as many
calibration tokens as the stage before and keeps the best of them.

Unless `fresh` is set, the search differs from EvoPress in two ways, so that measured values can be reused. All stages
of a generation measure on the beginning of the same window of calibration sequences. After the last window the first
one is used again.

Candidates of equal fitness keep their order, in which the parent is first.

References:
    EvoPress: Towards Optimal Dynamic Model Compression via Evolutionary Search (arXiv 2410.14649), algorithm 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from ...evaluators.trial import Fidelity
from ...spaces.levels.labels import parse_label
from ...spaces.space import Limits, Profile, Space
from ..asking.calibration_sequences import CalibrationSequences, Workload
from ..asking.method import MethodConfig, Task
from ..asking.turns import Request, Turns, read_profiles, starting_profiles
from .mutation import Groups, Mutation


class EvolutionConfig(MethodConfig):
    """Settings of `evolution`; a setting that is left out takes EvoPress's value for the kind of space.

    | space | generations | offspring | survivors | tokens | groups | initial |
    | --- | --- | --- | --- | --- | --- | --- |
    | bits, mixtures | 150 | 128 | 16, 4, 1 | 2048, 16384, 131072 | size; none for mixtures | 0 |
    | sparsity | 400 | 64 | 8, 2, 1 | 2048, 16384, 65536 | none | 0 |
    | drop | k(n-k)/1.5 | 32 | 2, 1 | 2048, 32768 | | 64 of 2048 tokens, equal drops of each type |

    A space of mixtures has levels of more than one kind: bit widths, sparsities or dropped branches. In the number of
    generations, k is the number of dropped branches and n the number of all branches, both of one branch type where
    drops are balanced.

    Attributes:
        generations: largest number of generations of the search.
        offspring: number of offspring of each generation.
        survivors: number of survivors of each stage; the last stage has 1. The parent is a candidate of the last stage.
        tokens: number of calibration tokens that each stage measures a candidate on.
        groups: units between which a mutation switches levels: units of equal cost tables (`size`), of one module name
            (`name`), of one branch type (`type`), or any units (`none`).
        drop_balance: whether equal numbers of attention and MLP branches are dropped, so that a swap stays within one
            branch type. By default they are in a space of branches only.
        initial: number of random profiles that are candidates for the first parent, besides the start profiles. With 0
            the best start profile is the first parent.
        initial_tokens: number of calibration tokens that the candidates for the first parent are measured on.
        switches: largest number of moves of one mutation. The number is the smaller of two random draws from 1 to this.
        fresh: whether every stage measures on newly drawn calibration sequences, as EvoPress does. Measured values are
            then never reused.
        patience: number of generations in a row without a new parent after which the search ends; null for no such
            end.
    """

    summary: ClassVar[str] = (
        "EvoPress's evolution: mutates profiles by level switches, and selects offspring in stages of growing tokens"
    )

    method: Literal["evolution"] = "evolution"
    generations: int | None = Field(default=None, ge=0)
    offspring: PositiveInt | None = None
    survivors: tuple[PositiveInt, ...] | None = Field(default=None, min_length=1)
    tokens: tuple[PositiveInt, ...] | None = Field(default=None, min_length=1)
    groups: Groups | None = None
    drop_balance: bool | None = None
    initial: int | None = Field(default=None, ge=0)
    initial_tokens: PositiveInt = 2048
    switches: PositiveInt = 3
    fresh: bool = False
    patience: PositiveInt | None = None

    @model_validator(mode="after")
    def _stages_match(self) -> "EvolutionConfig":
        if (self.survivors is None) != (self.tokens is None):
            raise ValueError("survivors and tokens belong together; give both or neither")
        if self.survivors and self.tokens:
            if len(self.survivors) != len(self.tokens):
                raise ValueError(
                    f"{len(self.survivors)} survivors for {len(self.tokens)} token counts; give one of each per stage"
                )
            if self.survivors[-1] != 1:
                raise ValueError(f"the last stage has {self.survivors[-1]} survivors; it must leave 1")
            if list(self.survivors) != sorted(self.survivors, reverse=True):
                raise ValueError(
                    f"survivors {self.survivors} grow; each stage keeps at most as many as the stage before"
                )
            if list(self.tokens) != sorted(self.tokens):
                raise ValueError(
                    f"tokens {self.tokens} shrink; each stage uses at least as many as the stage before"
                )
        return self

    def build(self, task: Task) -> "EvolutionSearcher":
        """Build the searcher for a task."""
        return EvolutionSearcher(self, task.space, task.limits, task.calibration, task.seed, task.start)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Settings of a search, as in `EvolutionConfig`, with every default filled in for the space."""

    generations: int
    offspring: int
    survivors: tuple[int, ...]
    tokens: tuple[int, ...]
    groups: Groups
    drop_balance: bool
    initial: int


def content(space: Space) -> Literal["bits", "sparsity", "drop", "mixed"]:
    """Return what the levels of a space vary: bit widths, sparsities, dropped branches, or several (`mixed`)."""
    if all(unit.droppable for unit in space.units):
        return "drop"
    labels = {level.label for unit in space.units if not unit.droppable for level in unit.levels}
    schemes = [parse_label(label) for label in labels]
    grids, sparse = any(s.rounds for s in schemes), any(s.sparsity for s in schemes)
    if any(unit.droppable for unit in space.units) or (grids and sparse):
        return "mixed"
    return "sparsity" if sparse else "bits"


def schedule(config: EvolutionConfig, space: Space, limits: Limits) -> Schedule:
    """Return the settings of a search, with EvoPress's values for all that the configuration leaves out."""
    kind = content(space)
    balanced = kind == "drop" if config.drop_balance is None else config.drop_balance
    generations, offspring, survivors, tokens, initial = {
        "bits": (150, 128, (16, 4, 1), (2048, 16384, 131072), 0),
        "mixed": (150, 128, (16, 4, 1), (2048, 16384, 131072), 0),
        "sparsity": (400, 64, (8, 2, 1), (2048, 16384, 65536), 0),
        "drop": (_drop_generations(space, limits, balanced), 32, (2, 1), (2048, 32768), 64),
    }[kind]
    return Schedule(
        generations=generations if config.generations is None else config.generations,
        offspring=config.offspring or offspring,
        survivors=config.survivors or survivors,
        tokens=config.tokens or tokens,
        groups=config.groups or ("size" if kind == "bits" else "none"),
        drop_balance=balanced,
        initial=initial if config.initial is None else config.initial,
    )


def _drop_generations(space: Space, limits: Limits, balanced: bool) -> int:
    """Return k(n-k)/1.5, EvoPress's number of generations if k of n branches are dropped, at least 1.

    k is counted in the uniform profile. Both numbers are of one branch type where drops are balanced, else of all.
    """
    types = len({unit.branch for unit in space.units}) if balanced else 1
    dropped = sum(label == "drop" for label in space.labels(space.uniform(limits))) / types
    return max(int(dropped * (len(space.units) / types - dropped) / 1.5), 1)


class EvolutionSearcher(Turns):
    """A searcher by evolution with one parent and selection in stages.

    Args:
        config: settings of the method.
        space: space of the profiles.
        limits: limits that no profile exceeds.
        calibration: calibration sequences to measure on.
        rng_seed: seed of all random numbers.
        start: profiles that are candidates for the first parent, besides the uniform profile.
    """

    def __init__(
        self,
        config: EvolutionConfig,
        space: Space,
        limits: Limits,
        calibration: CalibrationSequences,
        rng_seed: int,
        start: Sequence[Profile] = (),
    ) -> None:
        super().__init__(space, calibration, rng_seed, starting_profiles(space, limits, start))
        self.schedule = schedule(config, space, limits)
        self.mutation = Mutation(
            space, limits, self.schedule.groups, self.schedule.drop_balance, config.switches
        )
        self.config = config
        self.parent: Profile | None = None
        self.generation = 0
        self._phase: Literal["starts", "initial", "stage", "done"] = "starts"
        self._stage = 0
        self._stale = 0
        self._candidates: list[Profile] = []

    def workload(self) -> Workload:
        """Return an upper bound of the trials and tokens of the search, which counts known values too."""
        work = Workload().add(len(self.starts), self.calibration.archive)
        plan = self.schedule
        if plan.initial:
            work = work.add(
                plan.initial + len(self.starts), self.calibration.prefix(self.config.initial_tokens)
            )
        counts = (plan.offspring, *plan.survivors)
        for _ in range(plan.generations):
            for stage, tokens in enumerate(plan.tokens):
                last = stage == len(plan.tokens) - 1
                work = work.add(min(counts[: stage + 1]) + last, self.calibration.prefix(tokens))
            work = work.add(1, self.calibration.archive)
        return work

    def _next(self) -> list[Request]:
        if self._phase == "starts":
            return [(profile, self.calibration.archive) for profile in self.starts]
        if self._phase == "initial":
            fidelity = self._initial_fidelity()
            return [(profile, fidelity) for profile in self._candidates]
        if self._phase == "stage" and self._stage == 0 and not self._candidates:
            self._breed()
        if self._phase == "done":
            return []
        fidelity = self._stage_fidelity()
        return [(profile, fidelity) for profile in self._candidates]

    def _breed(self) -> None:
        """Make the parent's offspring the candidates, or end the search if no more are wanted or none is found."""
        assert self.parent is not None
        patience = self.config.patience
        if self.generation < self.schedule.generations and (patience is None or self._stale < patience):
            self._candidates = self.mutation.offspring(self.parent, self.schedule.offspring, self.rng)
        if not self._candidates:
            self._phase = "done"
        elif len(self.schedule.tokens) == 1:
            self._candidates = [self.parent, *self._candidates]

    def _initial_fidelity(self) -> Fidelity:
        tokens = self.config.initial_tokens
        return (
            self.calibration.fresh(tokens, self._draw_seed())
            if self.config.fresh
            else self.calibration.prefix(tokens)
        )

    def _stage_fidelity(self) -> Fidelity:
        tokens = self.schedule.tokens
        if self.config.fresh:
            return self.calibration.fresh(tokens[self._stage], self._draw_seed())
        return self.calibration.window(tokens[self._stage], self.generation, tokens[-1])

    def _draw_seed(self) -> int:
        return int(self.rng.integers(1, 2**31))

    def _learn(self, profiles: list[Profile], fitness: list[float]) -> None:
        if self._phase == "starts":
            self._choose_starts(profiles, fitness)
        elif self._phase == "initial":
            self._become_parent(profiles[int(np.argmin(fitness))])
        else:
            self._select(profiles, fitness)

    def _choose_starts(self, profiles: list[Profile], fitness: list[float]) -> None:
        eligible = list(range(len(profiles)))
        if self.schedule.drop_balance and self.mutation.only_drops:
            eligible = [i for i in eligible if self.mutation.is_balanced(profiles[i])]
        if self.schedule.initial or not eligible:
            known = [profiles[i] for i in eligible]
            states = self.mutation.random_states(max(self.schedule.initial, 1), self.rng)
            keys = {self.space.canonical(p) for p in known}
            self._candidates = known + [p for p in states if self.space.canonical(p) not in keys]
            self._phase = "initial" if self._candidates else "done"
        else:
            self._become_parent(profiles[min(eligible, key=fitness.__getitem__)])

    def _become_parent(self, profile: Profile) -> None:
        self.parent = profile
        self._promote(profile)
        self._phase, self._candidates = "stage", []

    def _select(self, profiles: list[Profile], fitness: list[float]) -> None:
        keep = self.schedule.survivors[self._stage]
        ranked = np.argsort(fitness, kind="stable")[:keep]
        self._candidates = [profiles[int(i)] for i in ranked]
        self._stage += 1
        last = len(self.schedule.survivors) - 1
        if self._stage == last:
            assert self.parent is not None
            self._candidates = [self.parent, *self._candidates]
        elif self._stage > last:
            winner = self._candidates[0]
            self._stale = self._stale + 1 if winner == self.parent else 0
            self.generation, self._stage = self.generation + 1, 0
            self._become_parent(winner)

    def _save(self) -> dict[str, Any]:
        return {
            "phase": self._phase,
            "parent": None if self.parent is None else list(self.parent),
            "generation": self.generation,
            "stage": self._stage,
            "stale": self._stale,
            "candidates": [list(p) for p in self._candidates],
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self._phase = state["phase"]
        self.parent = None if state["parent"] is None else tuple(state["parent"])
        self.generation = state["generation"]
        self._stage = state["stage"]
        self._stale = state["stale"]
        self._candidates = read_profiles(state["candidates"])
