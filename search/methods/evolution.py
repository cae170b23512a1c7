"""EvoPress's evolution: one parent, mutation only, offspring thinned out in stages of growing fidelity.

Two things differ from the original unless `fresh` is set: the stages of a generation are nested prefixes of one
window of the calibration calibration, and windows come around again, so that values can be reused. Ties keep the order
of the candidates, the parent first.

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
    """Settings of `evolution`; those left out are EvoPress's own for what the space contains.

    | space | generations | offspring | survivors | tokens | groups | initial |
    | --- | --- | --- | --- | --- | --- | --- |
    | bits, mixtures | 150 | 128 | 16, 4, 1 | 2048, 16384, 131072 | size; none for mixtures | 0 |
    | sparsity | 400 | 64 | 8, 2, 1 | 2048, 16384, 65536 | none | 0 |
    | drop | k(n-k)/1.5 | 32 | 2, 1 | 2048, 32768 | | 64 of 2048 tokens, equal drops of each type |

    Here k of n branches are dropped, of each type where drops are balanced, else of all together.

    Attributes:
        generations: most generations of the search.
        offspring: number of offspring of each generation.
        survivors: survivors of each stage, the last being 1. The parent joins the last stage.
        tokens: calibration tokens of each stage.
        groups: units between which levels are switched: those of equal `size`, of one module name, of one branch type, or any (`none`).
        drop_balance: whether equal numbers of attention and MLP branches are dropped, so that swaps stay within a type.
        initial: number of random profiles from which the first parent is chosen.
        initial_tokens: calibration tokens with which the first parent is chosen.
        switches: most moves of one mutation; the number is the smaller of two draws.
        fresh: whether every stage draws a new random minibatch, as the original does; then no value is ever used twice.
        patience: generations without a new parent after which the search ends; null never ends it for that.
    """

    summary: ClassVar[str] = "EvoPress's evolution: level switches, selection in stages of growing tokens"

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
                    f"survivors {self.survivors} grow; each stage keeps at most as many as the last"
                )
            if list(self.tokens) != sorted(self.tokens):
                raise ValueError(f"tokens {self.tokens} shrink; each stage uses at least as many as the last")
        return self

    def build(self, task: Task) -> "EvolutionSearcher":
        """Build the searcher for a task."""
        return EvolutionSearcher(self, task.space, task.limits, task.calibration, task.seed, task.start)


@dataclass(frozen=True, slots=True)
class Schedule:
    """`EvolutionConfig` with every blank filled in."""

    generations: int
    offspring: int
    survivors: tuple[int, ...]
    tokens: tuple[int, ...]
    groups: Groups
    drop_balance: bool
    initial: int


def content(space: Space) -> Literal["bits", "sparsity", "drop", "mixed"]:
    """What a space varies: bit widths, sparsities, drops, or more than one of them."""
    if all(unit.droppable for unit in space.units):
        return "drop"
    labels = {level.label for unit in space.units if not unit.droppable for level in unit.levels}
    schemes = [parse_label(label) for label in labels]
    grids, sparse = any(s.rounds for s in schemes), any(s.sparsity for s in schemes)
    if any(unit.droppable for unit in space.units) or (grids and sparse):
        return "mixed"
    return "sparsity" if sparse else "bits"


def schedule(config: EvolutionConfig, space: Space, limits: Limits) -> Schedule:
    """The settings of a search, blanks filled with EvoPress's own numbers."""
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
    """EvoPress's k(n-k)/1.5 for k of n branches dropped: of each type where drops are balanced, else of all."""
    types = len({unit.branch for unit in space.units}) if balanced else 1
    dropped = sum(label == "drop" for label in space.labels(space.uniform(limits))) / types
    return max(int(dropped * (len(space.units) / types - dropped) / 1.5), 1)


class EvolutionSearcher(Turns):
    """(1 + offspring) evolution with selection in stages.

    Args:
        config: settings; blanks follow EvoPress.
        space: of the profiles.
        limits: that no profile exceeds.
        calibration: calibration sequences to draw on.
        rng_seed: of every draw.
        start: profiles that are candidates for the first parent, beside the uniform one.
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
        """Most trials and tokens, known values not subtracted."""
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
        """Fill the candidates with offspring, or end the search."""
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
