"""A population's work in parts that workers take one after the other."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np

from ...evaluators.slopes.passes import passes
from ...evaluators.trial import Trial
from ...spaces.space import Space
from .sharing import Population, edges

PARTS = 4
"""Most parts for each worker: the more there are, the less is waited for the slowest at the end of a stage."""

UNEVEN = 0.125
"""Share of a part's time that workers wait for the last one; up to this was seen on two H200s."""

GPU_INSTALL = 5e9
"""Multiply-accumulates in the time that a block's weights take to be put in place on a GPU, which waits for the host.

Seen on an H200 with blocks of 1 M weights, where it is the time of 5,000 tokens; with blocks of 218 M, where it is that
of 23, and on CPUs nothing of it can be seen.
"""

Part = list[Trial]
"""Trials of one fidelity, or one that asks for slopes."""


def split(trials: Iterable[Trial], space: Space, grain: int, workers: int, install: float = 0) -> list[Part]:
    """About `PARTS` parts of about equal work for each worker, the largest first; together they are all of `trials`.

    Profiles that stay together share the blocks that they agree on and the teacher, sequences that stay together
    share the installation of every block: a stage is cut into runs of sequences times runs of neighbouring profiles.
    Where installing takes time, there are as many runs of each, and as few parts, as end first: what is done twice
    and what is waited for count. Slopes come in one part for each worker, because every part makes all levels'
    weights anew.

    Args:
        trials: what to divide.
        space: of the profiles; says how long slopes take.
        grain: sequences that are evaluated together; parts begin and end at multiples of it.
        workers: number of workers.
        install: multiply-accumulates in the time that a block's weights take to be put in place; without it,
            sequences are divided first.
    """
    stages: dict[object, Part] = {}
    for trial in trials:
        stages.setdefault(trial if trial.slopes else trial.fidelity, []).append(trial)
    total = sum(work(stage, space) for stage in stages.values())
    blocks = len({unit.block for unit in space.units if unit.block >= 0})
    install_tokens = install * blocks / max(space.weights, 1)
    parts: list[Part] = []
    for stage in stages.values():
        share = workers * work(stage, space) / total
        parts += _divided(stage, space, grain, share, install_tokens)
    return sorted(parts, key=lambda part: -work(part, space))


def work(part: Part, space: Space) -> int:
    """Tokens times passes through the model."""
    first = part[0]
    return len(part) * first.fidelity.tokens * (passes(space) if first.slopes else 1)


def _divided(stage: Part, space: Space, grain: int, workers: float, install_tokens: float) -> Iterator[Part]:
    fidelity = stage[0].fidelity
    micro_batches = range(fidelity.start // grain, -(-fidelity.stop // grain))
    ordered = sorted(stage, key=lambda trial: trial.profile)
    population = Population.of([trial.profile for trial in ordered], space, install_tokens / fidelity.tokens)
    if stage[0].slopes or not install_tokens:
        wanted = max(round(workers * (1 if stage[0].slopes else PARTS)), 1)
        runs = min(wanted, len(micro_batches))
    else:
        wanted, runs = _soonest(population, len(micro_batches), workers)
    for low, high in pairwise(edges(np.ones(len(micro_batches)), runs)):
        start = max(micro_batches[low] * grain, fidelity.start)
        own = replace(fidelity, start=start, stop=min(micro_batches[high - 1] * grain + grain, fidelity.stop))
        for first, last in pairwise(population.edges(-(-wanted // runs), runs)):
            yield [replace(trial, fidelity=own) for trial in ordered[first:last]]


def _soonest(population: Population, micro_batches: int, workers: float) -> tuple[int, int]:
    """Parts, and into how many runs sequences are cut, such that all are done first."""

    def time(wanted: int, runs: int) -> float:
        groups = population.edges(-(-wanted // runs), runs)
        parts = runs * (len(groups) - 1)
        work = population.work(groups, runs, min(math.ceil(workers), len(groups) - 1))
        return work * (1 / min(workers, parts) + UNEVEN / parts)

    cuts = [
        (wanted, runs)
        for wanted in (max(round(workers * each), 1) for each in _halved(PARTS))
        for runs in _halved(min(wanted, micro_batches))
    ]
    return min(cuts, key=lambda cut: time(*cut))


def _halved(most: int) -> list[int]:
    """`most`, and that again and again halved, rounded up, down to one."""
    return [-(-most // 2**times) for times in range((most - 1).bit_length() + 1)]
