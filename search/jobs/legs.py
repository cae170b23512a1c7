"""The legs of a search: every configured method for every budget, in turn."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...spaces.space import Limits, Space
from ..asking.calibration_sequences import CalibrationSequences, Workload
from ..asking.method import Errors, MethodConfig, Task
from ..asking.series import Leg


def legs(
    methods: Sequence[MethodConfig],
    space: Space,
    budgets: Sequence[Limits],
    calibration: CalibrationSequences,
    seed: int,
    errors: Errors,
    *,
    informed: bool = False,
) -> list[Leg]:
    """Builders of the searchers, in the order in which they run.

    A method runs once for all budgets together if it serves all, else once per budget. The first method starts from
    uniform; a later one (and the first, if `informed`) also starts from the best profiles measured so far.
    """
    found: list[Leg] = []
    for place, config in enumerate(methods):
        for group in _groups(config, budgets):
            leg_seed = int(np.random.SeedSequence([seed, len(found)]).generate_state(1)[0])
            task = Task(space, group, calibration, leg_seed, errors)
            found.append(_leg(config, task, informed=informed or place > 0))
    return found


def workload(
    methods: Sequence[MethodConfig],
    space: Space,
    budgets: Sequence[Limits],
    calibration: CalibrationSequences,
    errors: Errors,
) -> Workload:
    """Most trials and tokens that all methods together will ask."""
    total = Workload()
    for config in methods:
        for group in _groups(config, budgets):
            total = total.plus(config.build(Task(space, group, calibration, 0, errors)).workload())
    return total


def _groups(config: MethodConfig, budgets: Sequence[Limits]) -> list[list[Limits]]:
    """The budgets that each searcher of a method serves."""
    return [list(budgets)] if config.serves == "all" else [[limits] for limits in budgets]


def _leg(config: MethodConfig, task: Task, *, informed: bool) -> Leg:
    return lambda scored: config.build(replace(task, scored=scored) if informed else task)
