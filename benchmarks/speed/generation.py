"""One generation of EvoPress's quantisation search with the population evaluator, timed stage by stage.

There are three cases, each on sequences that were not used before:
`first`: nothing is known, so the dense model runs too;
`steady`: the dense model is known on the sequences, as in every later generation over them;
`nested`: the parent's values are known too, and a stage skips the sequences that its candidates were evaluated on in
the stage before, as a study does with its journal.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from benchmarks.speed.floor import Work, work_left
from paretopress.evaluators.population.population import PopulationEvaluator
from paretopress.evaluators.trial import Fidelity, Trial
from paretopress.search.methods.mutation import Mutation
from paretopress.search.run.assembly import Assembly
from paretopress.spaces.space import Profile

Case = Literal["first", "steady", "nested"]
CASES: tuple[Case, ...] = ("first", "steady", "nested")
Around = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Plan:
    """The stages of selection in one generation.

    Attributes:
        offspring: number of mutants in one generation.
        survivors: number of candidates that each stage keeps.
        tokens: number of tokens per candidate in each stage; the parent joins the last stage.
    """

    offspring: int = 128
    survivors: tuple[int, ...] = (16, 4, 1)
    tokens: tuple[int, ...] = (2_048, 16_384, 131_072)

    def __post_init__(self) -> None:
        if len(self.survivors) != len(self.tokens):
            raise ValueError(
                f"{len(self.survivors)} survivors for {len(self.tokens)} token counts; give one of each per stage"
            )
        if list(self.tokens) != sorted(set(self.tokens)):
            raise ValueError(f"tokens {self.tokens} do not grow from stage to stage; nested stages need that")

    def fidelity(self, stage: int, start: int, length: int) -> Fidelity:
        """Return the sequences of a stage from position `start` on; a longer one is cut to the tokens of the stage."""
        tokens = self.tokens[stage]
        return Fidelity(0, start, start + -(-tokens // length), min(tokens, length))

    def window(self, length: int) -> int:
        """Return the number of sequences that one generation uses, for sequences of `length` tokens."""
        return max(-(-tokens // length) for tokens in self.tokens)


@dataclass(frozen=True)
class Stage:
    """One stage that was timed.

    Attributes:
        candidates: profiles that were evaluated.
        fidelity: sequences that they were evaluated on.
        untaught: number of these sequences on which the dense model ran too.
        seconds: wall time of the stage.
        work: operations that shared prefixes leave.
        values: fitness of every candidate.
    """

    candidates: tuple[Profile, ...]
    fidelity: Fidelity
    untaught: int
    seconds: float
    work: Work
    values: tuple[float, ...]

    @property
    def name(self) -> str:
        """Name of the stage in tables, candidates times tokens."""
        return f"{len(self.candidates)} x {self.fidelity.tokens:,}"

    def best(self, count: int) -> list[Profile]:
        """Return the `count` candidates of lowest fitness, the best first."""
        order = np.argsort(self.values, kind="stable")[:count]
        return [self.candidates[int(i)] for i in order]


class Bench:
    """An assembly with its levels built, its evaluator, and the calibration sequences that were not used yet."""

    def __init__(self, assembly: Assembly, plan: Plan) -> None:
        self.assembly = assembly
        self.plan = plan
        self.length = assembly.config.data.length
        ((_, self.limits),) = assembly.limits
        self.parent = assembly.space.uniform(self.limits)
        self._mutation = Mutation(assembly.space, self.limits, "size", False, 3)
        self._next = 0
        self._evaluator: PopulationEvaluator | None = None

    @property
    def evaluator(self) -> PopulationEvaluator:
        """The population evaluator, made at the first use with the memory that is free then."""
        if self._evaluator is None:
            self._evaluator = self.assembly.evaluator()
        return self._evaluator

    @property
    def width(self) -> int:
        """Number of query heads times their size."""
        config = self.assembly.checkpoint.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(config.num_attention_heads * size)

    def offspring(self, seed: int, count: int | None = None) -> list[Profile]:
        """Return mutants of the uniform profile, each with min(U{1..3}, U{1..3}) level switches."""
        wanted = self.plan.offspring if count is None else count
        return self._mutation.offspring(self.parent, wanted, np.random.default_rng(seed))

    def unseen(self, sequences: int) -> int:
        """Return the first position of sequences that were not used yet, at the beginning of a micro-batch.

        Raises:
            ValueError: there are not enough unused sequences left.
        """
        size = int(self.assembly.config.evaluation.micro_batch)
        start = -(-self._next // size) * size
        self._next = start + sequences
        pool = len(self.assembly.data["calibration"])
        if self._next > pool:
            raise ValueError(f"sequences up to {self._next} are needed, there are {pool}; lower --runs")
        return start

    def teach(self, fidelities: Sequence[Fidelity]) -> None:
        """Evaluate the dense model on some sequences, so that its hidden states are known there."""
        for fidelity in dict.fromkeys(fidelities):
            self.evaluator.measure([{}], fidelity)

    def stage(self, candidates: Sequence[Profile], fidelity: Fidelity, untaught: int) -> Stage:
        """Time one call of `evaluate` for all candidates.

        Args:
            candidates: profiles to evaluate.
            fidelity: sequences to evaluate the profiles on.
            untaught: number of these sequences on which the dense model is not known.
        """
        trials = [Trial(i, profile, fidelity) for i, profile in enumerate(candidates)]
        _wait()
        began = time.perf_counter()
        values = {answer.trial.number: answer.fitness for answer in self.evaluator.evaluate(trials)}
        _wait()
        seconds = time.perf_counter() - began
        work = self._work(candidates, fidelity, untaught)
        return Stage(
            tuple(candidates), fidelity, untaught, seconds, work, tuple(values[t.number] for t in trials)
        )

    def _work(self, candidates: Sequence[Profile], fidelity: Fidelity, untaught: int) -> Work:
        return work_left(
            self.assembly.structure,
            self.width,
            [self.assembly.space.assignment(profile) for profile in candidates],
            sequences=fidelity.sequences,
            length=fidelity.length,
            untaught=untaught,
        )

    def generation(self, case: Case, seed: int, around: Around = nullcontext) -> list[Stage]:
        """Time all stages of a generation on unused sequences.

        Args:
            case: name of one of the three cases, which says whose values are known before the generation.
            seed: seed of the mutants.
            around: function that makes a context in which each stage runs, such as a profiler.
        """
        plan, start = self.plan, self.unseen(self.plan.window(self.length))
        fidelities = [plan.fidelity(i, start, self.length) for i in range(len(plan.tokens))]
        if case != "first":
            self.teach(fidelities)
        known: dict[int, int] = {}
        candidates, found = self.offspring(seed), list[Stage]()
        for i, fidelity in enumerate(fidelities):
            last = i == len(fidelities) - 1
            if case == "nested" and i and fidelities[i - 1].length == fidelity.length:
                fidelity = Fidelity(0, fidelities[i - 1].stop, fidelity.stop, fidelity.length)
            if last and case != "nested":
                candidates = [self.parent, *candidates]
            untaught = 0
            if case == "first":
                untaught = fidelity.stop - max(fidelity.start, known.get(fidelity.length, 0))
                known[fidelity.length] = fidelity.stop
            with around():
                found.append(self.stage(candidates, fidelity, untaught))
            candidates = found[-1].best(plan.survivors[i])
        return found


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
