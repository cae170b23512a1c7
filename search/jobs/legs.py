"""The legs of a search: every configured method for every budget, in turn."""

from collections.abc import Mapping, Sequence

import numpy as np

from ...spaces.space import Limits, Space
from ..asking.calibration_pool import Pool, Workload
from ..asking.series import Leg, Scored, starts_within
from ..asking.turns import Turns
from ..frontier.frontier import FrontierConfig, FrontierSearcher
from ..methods.bayes import OptunaConfig, OptunaSearcher
from ..methods.dp import DPConfig, DPSearcher
from ..methods.evolution import EvolutionConfig, EvolutionSearcher
from ..methods.greedy import GreedyConfig, GreedySearcher
from ..methods.random import RandomConfig, RandomSearcher

MethodConfig = FrontierConfig | EvolutionConfig | DPConfig | OptunaConfig | GreedyConfig | RandomConfig
Errors = Mapping[str, Mapping[str, float]]
"""Unit name to label to layer error."""

STARTS = 4
"""Profiles of earlier methods that a later one starts from."""


def legs(
    methods: Sequence[MethodConfig],
    space: Space,
    budgets: Sequence[Limits],
    pool: Pool,
    seed: int,
    errors: Errors,
    *,
    informed: bool = False,
) -> list[Leg]:
    """Builders of the searchers, in the order in which they run.

    `frontier` and `dp` serve all budgets together; every other method runs once per budget. The first
    method starts from uniform, a later one (and the first, if `informed`) also from the best profiles measured so far.
    """
    found: list[Leg] = []
    for place, config in enumerate(methods):
        for group in _groups(config, budgets):
            leg_seed = int(np.random.SeedSequence([seed, len(found)]).generate_state(1)[0])
            found.append(_leg(config, space, group, pool, leg_seed, errors, informed=informed or place > 0))
    return found


def workload(
    methods: Sequence[MethodConfig], space: Space, budgets: Sequence[Limits], pool: Pool, errors: Errors
) -> Workload:
    """Most trials and tokens that all methods together will ask."""
    total = Workload()
    for config in methods:
        for group in _groups(config, budgets):
            total = total.plus(_searcher(config, space, group, pool, 0, errors, []).workload())
    return total


def _groups(config: MethodConfig, budgets: Sequence[Limits]) -> list[list[Limits]]:
    """The budgets that one searcher serves: all at once for frontier and DP, else one."""
    together = isinstance(config, FrontierConfig | DPConfig)
    return [list(budgets)] if together else [[limits] for limits in budgets]


def _leg(
    config: MethodConfig,
    space: Space,
    budgets: list[Limits],
    pool: Pool,
    seed: int,
    errors: Errors,
    *,
    informed: bool,
) -> Leg:
    def build(scored: Sequence[Scored]) -> Turns:
        return _searcher(config, space, budgets, pool, seed, errors, scored if informed else [])

    return build


def _searcher(
    config: MethodConfig,
    space: Space,
    budgets: list[Limits],
    pool: Pool,
    seed: int,
    errors: Errors,
    scored: Sequence[Scored],
) -> Turns:
    limits = budgets[0]
    start = starts_within(space, limits, scored, STARTS)
    if isinstance(config, FrontierConfig):
        every = [p for each in budgets for p in starts_within(space, each, scored, STARTS)]
        return FrontierSearcher(config, space, budgets, pool, seed, every)
    if isinstance(config, DPConfig):
        return DPSearcher(config, space, budgets, pool, seed, start, errors)
    if isinstance(config, EvolutionConfig):
        return EvolutionSearcher(config, space, limits, pool, seed, start)
    if isinstance(config, GreedyConfig):
        return GreedySearcher(config, space, limits, pool, seed, start)
    if isinstance(config, RandomConfig):
        return RandomSearcher(config, space, limits, pool, seed, start)
    return OptunaSearcher(config, space, limits, pool, seed, start)
