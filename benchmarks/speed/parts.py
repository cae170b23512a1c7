"""The parts of the benchmark `population` that time one generation, with the published loop and with the evaluator."""

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.speed.floor import Work, best_cpu_rate, matrix_rate
from benchmarks.speed.generation import CASES, Bench, Case, Stage
from benchmarks.speed.profiling import StageProfiler, by_kind
from benchmarks.speed.published_loop import PublishedLoop, touch
from benchmarks.tables import show
from paretopress.evaluators.trial import Fidelity
from paretopress.search.run.machine import DTYPES
from paretopress.spaces.space import Profile

Figures = dict[str, Any]
WARM_UP = 10_000
"""Seed of the mutants of warm-ups, which are not timed."""
TITLES: dict[Case, str] = {
    "first": "First generation: nothing is known, the dense model runs too",
    "steady": "Steady state: the dense model is known",
    "nested": "Steady state, stages nested and the parent's values known",
}


def published_loop(bench: Bench, sequences: int, together: int = 1) -> PublishedLoop:
    """Make the baseline over the first calibration sequences, with its levels in the page cache, and warm it up.

    Args:
        bench: model, levels and text of the benchmark.
        sequences: number of sequences.
        together: number of sequences of one call of the model.
    """
    assembly = bench.assembly
    began = time.perf_counter()
    read = touch(assembly.database)
    loop = PublishedLoop(
        assembly.checkpoint.path,
        assembly.structure,
        assembly.database,
        assembly.data["calibration"].tokens[:sequences],
        device=assembly.runner.device,
        dtype=DTYPES[assembly.config.evaluation.dtype],
        together=together,
    )
    loop.install(assembly.space.assignment(bench.parent))
    lengths = {bench.plan.fidelity(i, 0, bench.length).length for i in range(len(bench.plan.tokens))}
    for length in lengths:
        loop.fitness([0], length)
    seconds = time.perf_counter() - began
    print(
        f"\npublished loop: ready in {seconds:.1f} s ({read:,} bytes of levels read, logits made)", flush=True
    )
    return loop


def baseline(bench: Bench, known: Sequence[float] | None = None) -> Figures:
    """Time one generation of the published loop, and print it with the known seconds of the published code itself."""
    plan, space = bench.plan, bench.assembly.space
    loop = published_loop(bench, plan.window(bench.length))
    loop.install(space.assignment(bench.parent))
    value = loop.fitness([0], bench.length)
    candidates: list[Profile] = bench.offspring(0)
    rng = np.random.default_rng(0)
    names, seconds = [], []
    for i, tokens in enumerate(plan.tokens):
        if i == len(plan.tokens) - 1:
            candidates = [bench.parent, *candidates]
        found = loop.select([space.assignment(profile) for profile in candidates], tokens, rng)
        names.append(f"{len(candidates)} x {tokens:,}")
        seconds.append(found.seconds)
        candidates = [candidates[i] for i in found.best(plan.survivors[i])]
    reference = [*known, sum(known)] if known else [None] * (len(names) + 1)
    rows = zip([*names, "whole generation"], [*seconds, sum(seconds)], reference, strict=True)
    show("Published loop", ("stage", "s", "its own code, s"), list(rows))
    return {
        "stages": names,
        "seconds": seconds,
        "whole": sum(seconds),
        "parent_first_sequence": value,
    } | peak()


def rate_of(bench: Bench) -> tuple[float, str]:
    """Return the matrix rate of the device in the evaluator's dtype, and how it was measured."""
    evaluation = bench.assembly.config.evaluation
    dtype = DTYPES[evaluation.dtype]
    if evaluation.device == "cpu":
        rate, threads = best_cpu_rate(dtype, int(evaluation.threads))
        return rate, f"{threads} threads"
    return matrix_rate(bench.assembly.runner.device, dtype), "8192^3 products"


def generations(bench: Bench, runs: int, published: Figures | None, cases: Sequence[Case] = CASES) -> Figures:
    """Time every case `runs` times after a warm-up, and compare the times with the floor and the published loop."""
    rate, how = rate_of(bench)
    print(f"\n{bench.evaluator.memory.describe()}")
    began = time.perf_counter()
    for case in dict.fromkeys((cases[0], cases[-1])):
        bench.generation(case, WARM_UP + CASES.index(case))
    warm_up = time.perf_counter() - began
    print(f"warm-up passes: {warm_up:.1f} s", flush=True)
    reset_peak()
    found: dict[Case, list[list[Stage]]] = {case: [] for case in cases}
    for run in range(runs):
        for case in cases:
            found[case].append(bench.generation(case, len(CASES) * run + CASES.index(case)))
    rate = max(rate, rate_of(bench)[0])
    print(
        f"matrix rate: {rate / 1e12:.4g} TFLOP/s in {bench.assembly.config.evaluation.dtype} ({how})",
        flush=True,
    )
    figures: Figures = {"rate": rate, "warm_up": warm_up}
    for case, timed in found.items():
        figures[case] = summary(timed, rate, published)
        headers = list(figures[case]["median"][0])
        show(
            f"{TITLES[case]} (median of {runs})",
            headers,
            [list(row.values()) for row in figures[case]["median"]],
        )
    figures |= peak() | _agreement(bench, published)
    return figures


def summary(timed: Sequence[Sequence[Stage]], rate: float, published: Figures | None) -> Figures:
    """Return medians over runs, for each stage and the whole generation, and the figures of every run.

    Args:
        timed: timed stages of every run.
        rate: matrix rate of the device, in operations per second.
        published: figures of the published loop, or None.
    """
    runs = [[*map(_of_stage, stages), _whole(stages)] for stages in timed]
    known = [*published["seconds"], published["whole"]] if published else None
    rows = []
    for i, (name, _, _) in enumerate(runs[0]):
        seconds, work = median(run[i][1] for run in runs), median(run[i][2].total for run in runs)
        row: Figures = {
            "stage": name,
            "published s": known[i] if known else None,
            "ours s": seconds,
            "PFLOP": work / 1e15,
            "blocks left": median(run[i][2].left for run in runs),
            "floor s": work / rate,
            "ours / floor": median(run[i][1] * rate / run[i][2].total for run in runs),
            "% of rate": 100 * median(run[i][2].total / run[i][1] / rate for run in runs),
            "published / ours": known[i] / seconds if known else None,
        }
        rows.append(row)
    raw = [[{"stage": name, "seconds": s, **vars(work)} for name, s, work in run] for run in runs]
    return {"median": rows, "runs": raw}


def _of_stage(stage: Stage) -> tuple[str, float, Work]:
    return stage.name, stage.seconds, stage.work


def _whole(stages: Sequence[Stage]) -> tuple[str, float, Work]:
    work = sum((stage.work for stage in stages), Work())
    return "whole generation", sum(stage.seconds for stage in stages), work


def _agreement(bench: Bench, published: Figures | None) -> Figures:
    """Compare the parent's fitness on the first sequence with the one that the published loop computed.

    Returns:
        The fitness (`parent_first_sequence`) and its relative difference (`apart`); nothing if the loop did not run.
    """
    if published is None:
        return {}
    parent = bench.assembly.space.assignment(bench.parent)
    ((ours,),), _ = bench.evaluator.measure([parent], Fidelity(0, 0, 1, bench.length))
    theirs = float(published["parent_first_sequence"])
    print(f"the parent on one sequence: {ours:.6g} here, {theirs:.6g} in the published loop", flush=True)
    return {"parent_first_sequence": ours, "apart": abs(ours - theirs) / theirs}


def profiles(bench: Bench) -> Figures:
    """Measure how the time of a generation of the `steady` case divides by kind of kernel and part of the evaluator."""
    bench.generation("steady", WARM_UP)
    around = StageProfiler()
    stages = bench.generation("steady", WARM_UP + 2, around)
    seconds = {stage.name: stage.seconds for stage in stages}
    kinds = [
        by_kind(trace.kernels, stage.seconds) for trace, stage in zip(around.traces, stages, strict=True)
    ]
    parts = [dict(trace.parts) for trace in around.traces]
    return {
        "kinds": _by_stage("Where the time goes, seconds under the profiler", seconds, kinds),
        "parts": _by_stage("The same by parts of the evaluator", seconds, parts),
    }


def _by_stage(title: str, seconds: dict[str, float], found: Sequence[dict[str, float]]) -> list[Figures]:
    """Print and return a table with a row per stage and one for the whole generation."""
    names = list(dict.fromkeys(name for row in found for name in row))
    whole = {name: sum(row.get(name, 0.0) for row in found) for name in names}
    labels = [*seconds, "whole generation"]
    rows: list[Figures] = [
        {"stage": label, **{name: row.get(name, 0.0) for name in names}, "all": total}
        for label, row, total in zip(
            labels, [*found, whole], [*seconds.values(), sum(seconds.values())], strict=True
        )
    ]
    show(title, list(rows[0]), [list(row.values()) for row in rows])
    return rows


def reset_peak() -> None:
    """Restart the measurement of the device's peak memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak() -> Figures:
    """Print and return the peak memory of the device since `reset_peak`."""
    if not torch.cuda.is_available():
        return {}
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    print(f"device: peak {allocated:,} bytes allocated, {reserved:,} reserved", flush=True)
    return {"device_peak_allocated": allocated, "device_peak_reserved": reserved}
