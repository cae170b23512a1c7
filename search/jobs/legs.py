"""The legs of a search, which are the searchers that run one after another: each method for each budget."""

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
    """Return functions that build the searchers, in the order in which these run.

    A method runs once if it serves all budgets together, else once per budget. The first method starts from the uniform
    profile. Later methods also start from the best profiles measured so far.

    Args:
        methods: settings of the methods, in their order.
        space: space of the profiles.
        budgets: limits of each budget.
        calibration: calibration sequences to draw on.
        seed: root of the seeds of the searchers.
        errors: layer errors of every unit at every level.
        informed: whether the first method also starts from the best profiles measured so far.
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
    """Return the largest number of trials and tokens that all methods together ask for.

    Args:
        methods: settings of the methods.
        space: space of the profiles.
        budgets: limits of each budget.
        calibration: calibration sequences to draw on.
        errors: layer errors of every unit at every level.
    """
    total = Workload()
    for config in methods:
        for group in _groups(config, budgets):
            total = total.plus(config.build(Task(space, group, calibration, 0, errors)).workload())
    return total


def _groups(config: MethodConfig, budgets: Sequence[Limits]) -> list[list[Limits]]:
    """Return the budgets that each searcher of a method serves."""
    return [list(budgets)] if config.serves == "all" else [[limits] for limits in budgets]


def _leg(config: MethodConfig, task: Task, *, informed: bool) -> Leg:
    return lambda scored: config.build(replace(task, scored=scored) if informed else task)
