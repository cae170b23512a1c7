"""A population's work in parts that workers take one after the other."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

from ..evaluators.passes import passes
from ..evaluators.trial import Trial
from ..spaces.space import Space

PARTS = 4
"""Of values for each worker: the more, the less one waits for the slowest at a stage's end."""

Part = list[Trial]
"""Trials of one fidelity, or one that asks for slopes."""

_Item = TypeVar("_Item")


def split(trials: Iterable[Trial], space: Space, grain: int, workers: int) -> list[Part]:
    """About `PARTS` parts of about equal work for each worker, the largest first; together they are all of `trials`.

    Sequences are divided first, because profiles that stay together share the blocks that they agree on; profiles,
    in their order, only where there are too few sequences. Slopes come in one part for each worker, because every part
    makes all levels' weights anew.

    Args:
        trials: what to divide.
        space: of the profiles; says how long slopes take.
        grain: sequences that are evaluated together; parts begin and end at multiples of it.
        workers: how many.
    """
    stages: dict[object, Part] = {}
    for trial in trials:
        stages.setdefault(trial if trial.slopes else trial.fidelity, []).append(trial)
    total = sum(work(stage, space) for stage in stages.values())
    parts: list[Part] = []
    for stage in stages.values():
        wanted = workers * (1 if stage[0].slopes else PARTS)
        parts += _divided(stage, grain, max(round(wanted * work(stage, space) / total), 1))
    return sorted(parts, key=lambda part: -work(part, space))


def work(part: Part, space: Space) -> int:
    """Tokens times passes through the model."""
    first = part[0]
    return len(part) * first.fidelity.tokens * (passes(space) if first.slopes else 1)


def _divided(stage: Part, grain: int, wanted: int) -> Iterator[Part]:
    fidelity = stage[0].fidelity
    micro_batches = _runs(range(fidelity.start // grain, -(-fidelity.stop // grain)), wanted)
    ordered = sorted(stage, key=lambda trial: trial.profile)
    for run in micro_batches:
        start, stop = max(run[0] * grain, fidelity.start), min((run[-1] + 1) * grain, fidelity.stop)
        own = replace(fidelity, start=start, stop=stop)
        for group in _runs(ordered, -(-wanted // len(micro_batches))):
            yield [replace(trial, fidelity=own) for trial in group]


def _runs(items: Sequence[_Item], wanted: int) -> list[Sequence[_Item]]:
    """Neighbours in at most `wanted` runs of about equal length."""
    count = min(wanted, len(items))
    return [items[low:high] for low, high in pairwise(len(items) * n // count for n in range(count + 1))]
