"""A population's work in parts that workers take one after the other."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..evaluators.passes import passes
from ..evaluators.trial import Trial
from ..spaces.space import Space

PARTS = 4
"""Of values for each worker: the more, the less one waits for the slowest at a stage's end."""

GPU_INSTALL = 5e9
"""Multiply-accumulates in the time that a block's weights take to be put in place on a GPU, which waits for the host.

Seen on an H200 with blocks of 1 M weights, where it is the time of 5,000 tokens; with blocks of 218 M, where it is that
of 23, and on CPUs nothing of it can be seen.
"""

Part = list[Trial]
"""Trials of one fidelity, or one that asks for slopes."""

Floats = npt.NDArray[np.float64]


def split(trials: Iterable[Trial], space: Space, grain: int, workers: int, install: float = 0) -> list[Part]:
    """About `PARTS` parts of about equal work for each worker, the largest first; together they are all of `trials`.

    Profiles that stay together share the blocks that they agree on, sequences that stay together share the
    installation of every block: a stage is cut into runs of sequences times runs of neighbouring profiles such that
    the least is done twice. Slopes come in one part for each worker, because every part makes all levels' weights
    anew.

    Args:
        trials: what to divide.
        space: of the profiles; says how long slopes take.
        grain: sequences that are evaluated together; parts begin and end at multiples of it.
        workers: how many.
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
        wanted = workers * (1 if stage[0].slopes else PARTS)
        parts += _divided(stage, grain, max(round(wanted * work(stage, space) / total), 1), install_tokens)
    return sorted(parts, key=lambda part: -work(part, space))


def work(part: Part, space: Space) -> int:
    """Tokens times passes through the model."""
    first = part[0]
    return len(part) * first.fidelity.tokens * (passes(space) if first.slopes else 1)


def _divided(stage: Part, grain: int, wanted: int, install_tokens: float) -> Iterator[Part]:
    fidelity = stage[0].fidelity
    micro_batches = range(fidelity.start // grain, -(-fidelity.stop // grain))
    ordered = sorted(stage, key=lambda trial: trial.profile)
    new = _new_units(ordered)
    runs = _runs_of_sequences(new, min(wanted, len(micro_batches)), wanted, install_tokens / fidelity.tokens)
    for low, high in pairwise(_edges(np.ones(len(micro_batches)), runs)):
        start = max(micro_batches[low] * grain, fidelity.start)
        own = replace(fidelity, start=start, stop=min(micro_batches[high - 1] * grain + grain, fidelity.stop))
        for first, last in pairwise(_edges(new, -(-wanted // runs))):
            yield [replace(trial, fidelity=own) for trial in ordered[first:last]]


def _runs_of_sequences(new: Floats, most: int, wanted: int, install: float) -> int:
    """Into how many runs sequences are cut: `most`, or so often halved that the least is done twice.

    Args:
        new: of `_new_units`.
        most: runs that there can be.
        wanted: parts.
        install: of a block's weights, in times that all sequences take.
    """
    if not install:
        return most

    def cost(runs: int) -> float:
        first = _edges(new, -(-wanted // runs))[:-1]
        return float(new.sum() + (new[0] - new[first]).sum()) * (runs * install + 1)

    halved = [-(-most // 2**times) for times in range(most.bit_length())]
    enough: list[int] = [runs for runs in halved if runs == most or -(-wanted // runs) <= len(new)]
    return min(enough, key=cost)


def _new_units(ordered: Part) -> Floats:
    """Units of each profile, the dense model included, from the first on in which it differs from the one before, but at least one."""
    units = max(len(trial.profile) for trial in ordered)
    levels = np.array([trial.profile or (-1,) * units for trial in ordered])
    same = np.logical_and.accumulate(levels[1:] == levels[:-1], axis=1).sum(axis=1)
    new: Floats = np.maximum(levels.shape[1] - np.concatenate([[0.0], same]), 1)
    return new


def _edges(sizes: Floats, wanted: int) -> list[int]:
    """Where at most `wanted` runs of neighbours of about equal size begin, and where the last one ends."""
    middles, whole = np.cumsum(sizes) - sizes / 2, sizes.sum()
    inner = np.searchsorted(middles, whole * np.arange(1, wanted) / wanted)
    return sorted({0, *inner.tolist(), len(sizes)})
