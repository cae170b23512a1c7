"""Division of trials into parts, which the workers of a pool take one after the other."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np

from ...evaluators.trial import Trial
from ...spaces.space import Space
from .sharing import Population, edges

PARTS = 4
"""Largest number of parts per worker. With more parts, workers wait less for the slowest one at the end of a stage."""

UNEVEN = 0.125
"""Share of a part's time that workers wait for the last part of a stage; the most that was measured on two H200s."""

GPU_INSTALL = 5e9
"""Time to install a block's weights on a GPU, which waits for the host, given as multiply-accumulates in that time.

Measured on an H200. With blocks of 1 M weights this is the time of 5,000 tokens. With blocks of 218 M weights, where it
is the time of 23 tokens, and on CPUs it is too short to be seen.
"""

Part = list[Trial]
"""Trials of one stage."""


def split(trials: Iterable[Trial], space: Space, grain: int, workers: int, install: float = 0) -> list[Part]:
    """Divide trials into parts of about equal work, about `PARTS` per worker.

    Profiles in one part share the teacher and the blocks that they agree on. Sequences in one part share the
    installation of every block. A stage, which is all trials of one kind and fidelity, is therefore cut into runs of
    successive sequences, and each run into groups of neighbouring profiles.

    Without `install`, the stage is first cut into as many runs as possible. With `install`, the numbers of runs and
    parts are those that should finish first, where repeated work and waiting for the last part count. Trials whose parts
    all repeat the work, such as those that ask for slopes, are cut into one part per worker.

    Args:
        trials: trials to divide.
        space: space of the profiles, which also tells how long a trial takes.
        grain: number of sequences that always run together; runs begin and end at multiples of it.
        workers: number of workers.
        install: time to install a block's weights, as the number of multiply-accumulates in that time.

    Returns:
        Parts that together are all of `trials`, those with most work first.
    """
    stages: dict[object, Part] = {}
    for trial in trials:
        stages.setdefault(trial.stage, []).append(trial)
    total = sum(work(stage, space) for stage in stages.values())
    blocks = len({unit.block for unit in space.units if unit.block >= 0})
    install_tokens = install * blocks / max(space.weights, 1)
    parts: list[Part] = []
    for stage in stages.values():
        share = workers * work(stage, space) / total
        parts += _divided(stage, space, grain, share, install_tokens)
    return sorted(parts, key=lambda part: -work(part, space))


def work(part: Part, space: Space) -> int:
    """Return the work of a part: tokens times passes through the model."""
    return len(part) * part[0].work(space)


def _divided(stage: Part, space: Space, grain: int, workers: float, install_tokens: float) -> Iterator[Part]:
    fidelity = stage[0].fidelity
    micro_batches = range(fidelity.start // grain, -(-fidelity.stop // grain))
    ordered = sorted(stage, key=lambda trial: trial.profile)
    population = Population.of([trial.profile for trial in ordered], space, install_tokens / fidelity.tokens)
    if stage[0].repeats_work or not install_tokens:
        wanted = max(round(workers * (1 if stage[0].repeats_work else PARTS)), 1)
        runs = min(wanted, len(micro_batches))
    else:
        wanted, runs = _soonest(population, len(micro_batches), workers)
    for low, high in pairwise(edges(np.ones(len(micro_batches)), runs)):
        start = max(micro_batches[low] * grain, fidelity.start)
        own = replace(fidelity, start=start, stop=min(micro_batches[high - 1] * grain + grain, fidelity.stop))
        for first, last in pairwise(population.edges(-(-wanted // runs), runs)):
            yield [replace(trial, fidelity=own) for trial in ordered[first:last]]


def _soonest(population: Population, micro_batches: int, workers: float) -> tuple[int, int]:
    """Return the number of parts and the number of runs of sequences with which the stage should finish first.

    Args:
        population: profiles of the stage.
        micro_batches: number of micro-batches of the stage.
        workers: number of workers, or a fraction of it where other stages run at the same time.
    """

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
    """Return `most`, its half, its quarter and so on down to 1, each rounded up."""
    return [-(-most // 2**times) for times in range((most - 1).bit_length() + 1)]
