"""Measurements of evaluating candidates together: equality of values, speed-up, and the share of work that is left."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.opening import Wanted, release
from benchmarks.speed.generation import Bench, Plan, Stage
from benchmarks.speed.parts import WARM_UP, peak, published_loop, rate_of, reset_peak
from benchmarks.tables import show
from paretopress.evaluators.population.population import PopulationEvaluator
from paretopress.evaluators.trial import Fidelity
from paretopress.search.run.assembly import Assembly
from paretopress.spaces.space import Profile

Figures = dict[str, Any]


def compare(bench: Bench, sequences: int = 2) -> Figures:
    """Check that a profile has the same values in four cases.

    It is evaluated by itself, together with other profiles, on later sequences only, and with little memory.

    Raises:
        RuntimeError: a value differs.
    """
    assignments = [bench.assembly.space.assignment(profile) for profile in bench.offspring(0, 16)]
    fidelity = Fidelity(0, 0, sequences, bench.length)
    last = Fidelity(0, sequences - 1, sequences, bench.length)
    (alone,), _ = bench.evaluator.measure(assignments[2:3], fidelity)
    company, _ = bench.evaluator.measure(assignments, fidelity)
    later, _ = bench.evaluator.measure(assignments[1:4], last)
    release()
    tiled, _ = narrowest(bench.assembly).measure(assignments[2:5], fidelity)
    require_equal({"alone": alone, "in company": company[2], "in other tiles": tiled[0]})
    require_equal({"alone": alone[-1:], "from another start": later[1]})
    print("\na profile alone, in company and in other tiles: equal bit for bit", flush=True)
    return {"equal": True, "values": alone}


def narrowest(assembly: Assembly) -> PopulationEvaluator:
    """Make an evaluator with about the smallest memory that it accepts, so that blocks stream and tiles are small.

    Raises:
        ValueError: the evaluator does not accept even a terabyte.
    """
    used = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    power = 20
    while True:
        evaluation = assembly.config.evaluation.model_copy(update={"memory": used + 2**power})
        config = assembly.config.model_copy(update={"evaluation": evaluation})
        try:
            return replace(assembly, config=config).evaluator()
        except ValueError:
            power += 1
            if power > 40:
                raise


def require_equal(values: Mapping[str, list[float]]) -> None:
    """Refuse values of one profile that are not equal bit for bit.

    Args:
        values: value of each sequence, by a description of how the values were measured.

    Raises:
        RuntimeError: the values of two measurements differ.
    """
    (first, expected), *others = values.items()
    for name, found in others:
        if found != expected:
            raise RuntimeError(f"values depend on company: {expected} {first}, {found} {name}")


def launches(wanted: Wanted) -> Figures:
    """Time a population at the first stage's tokens, and the same candidates one at a time on the same device."""
    bench = _first_stage(wanted).open()
    plan, space = bench.plan, bench.assembly.space
    tokens = plan.tokens[0]
    fidelity = plan.fidelity(0, 0, bench.length)
    apart = {}
    for together in dict.fromkeys([1, fidelity.sequences]):
        loop = published_loop(bench, fidelity.sequences, together)
        seconds = []
        for run in range(wanted.runs):
            candidates = [space.assignment(profile) for profile in bench.offspring(run)]
            seconds.append(loop.select(candidates, tokens, np.random.default_rng(run)).seconds)
        apart[together] = median(seconds)
        del loop
        release()
    steady(bench, bench.offspring(WARM_UP), tokens)
    reset_peak()
    ours = median(steady(bench, bench.offspring(run), tokens).seconds for run in range(wanted.runs))
    rows = [
        (f"one at a time, {n} sequence{'s' * (n > 1)} a call", seconds, seconds / ours)
        for n, seconds in apart.items()
    ]
    title = f"{plan.offspring} candidates at {tokens:,} tokens (median of {wanted.runs})"
    show(title, ("", "s", "times ours"), [*rows, ("population", ours, 1.0)])
    return {"apart": apart, "population": ours} | peak()


def _first_stage(wanted: Wanted) -> Wanted:
    """Return the options with only the first stage of the plan, which needs less text."""
    plan = wanted.plan
    return replace(wanted, plan=Plan(plan.offspring, plan.survivors[:1], plan.tokens[:1]))


def steady(bench: Bench, candidates: Sequence[Profile], tokens: int) -> Stage:
    """Time candidates on new sequences on which only the dense model is known."""
    start = bench.unseen(-(-tokens // bench.length))
    fidelity = Fidelity(0, start, start + -(-tokens // bench.length), min(tokens, bench.length))
    bench.teach([fidelity])
    return bench.stage(candidates, fidelity, 0)


def sensitivity(bench: Bench) -> list[Profile]:
    """Return one profile per unit: the parent with this unit moved to its neighbouring level of highest index."""
    found = []
    for u, unit in enumerate(bench.assembly.space.units):
        level = max(unit.levels[bench.parent[u]].neighbours)
        found.append((*bench.parent[:u], level, *bench.parent[u + 1 :]))
    return found


def arithmetic(wanted: Wanted, micro_batches: Sequence[int]) -> Figures:
    """Compare, for each micro-batch size, the time of two populations with the work that shared prefixes leave.

    The populations are mutants, as in evolution, and changes of one unit at a time, as in sensitivities.
    """
    wanted = _first_stage(wanted)
    tokens = wanted.plan.tokens[0]
    rows: list[tuple[str, float, int, float]] = []
    rates: list[float] = []
    for size in micro_batches:
        bench = wanted.open([f"evaluation.micro_batch={size}"])
        if not rates:
            rates.append(rate_of(bench)[0])
        steady(bench, bench.offspring(WARM_UP, 2), tokens)
        populations = {"evolution": bench.offspring(0), "sensitivity": sensitivity(bench)}
        for name, candidates in populations.items():
            timed = [steady(bench, candidates, tokens) for _ in range(wanted.runs)]
            seconds, work = median(stage.seconds for stage in timed), timed[0].work
            rows.append(
                (f"{name}, {len(candidates)} x {tokens:,}, B = {size}", seconds, work.total, work.left)
            )
        if size == micro_batches[-1]:
            rates.append(rate_of(bench)[0])
        del bench
        release()
    rate = max(rates)
    headers = ("population, micro-batch", "s", "TFLOP", "blocks left", "floor s", "s / floor")
    shown = [(n, s, work / 1e12, left, work / rate, s * rate / work) for n, s, work, left in rows]
    show(f"On {rate / 1e9:.4g} GFLOP/s of matrix products (median of {wanted.runs})", headers, shown)
    return {"rate": rate, "rows": [dict(zip(headers, row, strict=True)) for row in shown]}
