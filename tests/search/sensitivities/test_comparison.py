"""Ranks, allocations and the inverse question, against exhaustive definitions."""

import io
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from paretopress.search.allocation.allocation import allocate_limits
from paretopress.search.allocation.allocator import Allocator
from paretopress.search.allocation.moves import Moves
from paretopress.search.allocation.sensitivity import Sensitivity, probes
from paretopress.search.run.assembly import Assembly
from paretopress.search.sensitivities.comparison import cheapest_within, predicted, rank_correlations
from paretopress.search.sensitivities.level_scores import Scored
from paretopress.search.sensitivities.sensitivities import Comparison, allocations_by
from paretopress.spaces.budget import BudgetConfig
from paretopress.spaces.configuration import MinimumConfig
from paretopress.spaces.minimums import with_minimums
from paretopress.spaces.space import Space
from paretopress.tables import allocation_table
from tests.toys import (
    ToyEvaluator,
    bits_limits,
    bits_space,
    chain,
    everything,
    joint_limits,
    joint_space,
    linear,
)


def measured(space: Space, seed: int = 0) -> Sensitivity:
    evaluator = ToyEvaluator(space, seed=seed)
    base = Moves(space, {}).dearest
    found = [(probe, evaluator.true(probe.profile)) for probe in probes(space, base)]
    return Sensitivity.of(space, base, 64, evaluator.true(base), found)


def scaled(table: Sensitivity, factor: float, shift: float) -> Sensitivity:
    deltas = {name: {n: factor * d + shift for n, d in row.items()} for name, row in table.deltas.items()}
    return Sensitivity({}, 0, 0.0, deltas)


@given(st.floats(0.01, 100), st.floats(-5, 5))
def test_a_score_that_differs_by_scale_and_offset_ranks_alike(factor: float, shift: float) -> None:
    table = measured(bits_space())
    assert rank_correlations(table, scaled(table, factor, shift)) == pytest.approx((1.0, 1.0))


def test_a_reversed_score_ranks_the_other_way_round() -> None:
    table = measured(bits_space())
    assert rank_correlations(table, scaled(table, -1.0, 0.0)) == pytest.approx((-1.0, -1.0))


def test_ranks_over_levels_and_over_units_are_different_figures() -> None:
    base = dict.fromkeys("abc", "w6")
    table = Sensitivity(
        base, 64, 0.0, {name: {"w2": 4.0 + i, "w4": 1.0 + i, "w6": 0.0} for i, name in enumerate("abc")}
    )
    other = Sensitivity(
        {}, 0, 0.0, {name: {"w2": 9.0 - i, "w4": 2.0 - i, "w6": 0.0} for i, name in enumerate("abc")}
    )
    levels, units = rank_correlations(table, other)
    # Within each level the order is reversed (4 5 6 against 9 8 7), between levels it agrees.
    assert levels == pytest.approx(1 - 6 * (4 + 0 + 4 + 4 + 0 + 4) / (6 * 35))
    assert units == pytest.approx(-1.0)


def test_nothing_is_said_about_equal_or_few_scores() -> None:
    table = measured(bits_space())
    assert rank_correlations(table, scaled(table, 0.0, 1.0)) == (None, None)
    two = Sensitivity({"a": "w6"}, 64, 0.0, {"a": {"w2": 2.0, "w4": 1.0, "w6": 0.0}})
    assert rank_correlations(two, two) == (None, None)


@pytest.mark.parametrize("kind", ["bits", "joint"])
def test_allocations_have_the_least_predicted_fitness(kind: str) -> None:
    space = bits_space() if kind == "bits" else joint_space(1)
    limits = bits_limits(space) if kind == "bits" else joint_limits(space)
    table = measured(space)
    best = min(predicted(space, table, p) for p in everything(space) if space.fits(p, limits))
    allocator = Allocator(space, table.errors(space))
    found = allocator.best(limits)
    assert space.fits(found, limits)
    assert allocator.gap(limits) is None
    assert predicted(space, table, found) == pytest.approx(best)


@pytest.fixture(scope="module")
def unlike() -> tuple[Space, Sensitivity]:
    """No two levels of 60 units cost the same; errors fall about exponentially."""
    rng = np.random.default_rng(0)
    units, deltas = [], {}
    for u in range(60):
        labels = [f"w{n}" for n in range(2, 7)]
        costs = np.sort(rng.integers(0, 10**7, 5)).tolist()
        errors = rng.lognormal() * np.exp(-1.3 * np.arange(5)) * rng.uniform(0.6, 1.4, 5)
        units.append(
            linear(u, "q", chain((n, {"bits": cost}) for n, cost in zip(labels, costs, strict=True)))
        )
        deltas[units[-1].name] = dict(zip(labels, errors.tolist(), strict=True))
    return Space(tuple(units), weights=10**9), Sensitivity({}, 0, 0.0, deltas)


def test_gaps_are_told_where_costs_are_too_many_to_prove_anything(unlike: tuple[Space, Sensitivity]) -> None:
    space, table = unlike
    errors = table.errors(space)
    allocator = Allocator(space, errors)
    low, high = (space.cost(space.extreme("bits", largest), "bits") for largest in (False, True))
    for limit in np.linspace(low, high, 6).astype(int).tolist()[1:-1]:
        profile, gap = allocator.best({"bits": limit}), allocator.gap({"bits": limit})
        other = allocate_limits(space, errors, {"bits": limit})
        assert gap is not None
        assert 0 < gap < 0.01 * math.fsum(row[0] for row in errors)
        assert predicted(space, table, profile) - gap <= predicted(space, table, other)


def test_gaps_are_printed_where_nothing_is_proved(unlike: tuple[Space, Sensitivity]) -> None:
    space, table = unlike
    limits = tuple((BudgetConfig(bits=bits), {"bits": int(bits * 10**9)}) for bits in (0.2, 0.3))
    assembly = cast(Assembly, SimpleNamespace(space=space, kind="bits", limits=limits))
    scored = [Scored("kl", table, 0, 0.0)]
    found = allocations_by(assembly, scored, table)
    uniform, first, _, second = found
    assert uniform.gap is None
    assert first.gap
    assert second.gap
    out = Console(width=80, file=io.StringIO())
    out.print(allocation_table(Comparison(assembly, scored, found)))
    out.print(allocation_table(Comparison(assembly, scored, [uniform])))
    assert isinstance(out.file, io.StringIO)
    lines = out.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if " kl " in line and "w2" in line]
    for row, allocation in zip(rows, (first, second), strict=True):
        assert f" {allocation.gap:.2g} " in row
    assert sum(" gap " in line for line in lines) == 1


def test_predictions_add_up_from_the_base() -> None:
    space = bits_space()
    table, base = measured(space), Moves(space, {}).dearest
    assert predicted(space, table, base) == table.fitness
    for probe in probes(space, base):
        evaluator = ToyEvaluator(space, seed=0)
        assert predicted(space, table, probe.profile) == pytest.approx(evaluator.true(probe.profile))


@given(st.floats(0.0, 1.0), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_the_cheapest_profile_within_a_bound(position: float, seed: int) -> None:
    space = joint_space(1)
    table = measured(space, seed)
    every = {p: predicted(space, table, p) for p in everything(space)}
    kind = space.kinds[0]
    low, high = min(every.values()), max(every.values())
    bound = low + position * (high - low) + 1e-9
    profile, cost, fitness = cheapest_within(space, table, kind, bound)
    assert cost == min(space.cost(p, kind) for p, value in every.items() if value <= bound)
    assert space.cost(profile, kind) == cost
    assert fitness == pytest.approx(every[profile])
    assert fitness <= bound


@given(st.floats(0.0, 1.0), st.integers(0, 3), st.integers(0, 68))
@settings(max_examples=30, deadline=None)
def test_the_cheapest_profile_within_a_bound_and_other_limits(position: float, seed: int, spare: int) -> None:
    """A minimum count beside multiply-accumulates; a level is open to no one."""
    kept = MinimumConfig(count=1, label="w4")
    space = with_minimums(joint_space(1), [kept])
    table = measured(space, seed)
    deltas = {name: dict(row) for name, row in table.deltas.items()}
    del deltas["blocks.0.q"]["w3"]
    table = replace(table, deltas=deltas)
    limits = {"macs": 5 + 68 - spare, **space.always}
    every = {
        p: predicted(space, table, p)
        for p in everything(space)
        if space.fits(p, limits) and math.isfinite(predicted(space, table, p))
    }
    if not every:
        with pytest.raises(ValueError, match="no profile is within all"):
            cheapest_within(space, table, "bits", 0.0, limits)
        return
    low, high = min(every.values()), max(every.values())
    bound = low + position * (high - low) + 1e-6
    profile, cost, fitness = cheapest_within(space, table, "bits", bound, limits)
    assert space.fits(profile, limits)
    assert cost == space.cost(profile, "bits")
    assert cost == min(space.cost(p, "bits") for p, value in every.items() if value <= bound)
    assert fitness == pytest.approx(every[profile])
    assert fitness <= bound
    with pytest.raises(ValueError, match="cannot be reached: the best profile is predicted to have"):
        cheapest_within(space, table, "bits", low - 1e-6, limits)


def test_a_bound_that_no_profile_reaches() -> None:
    space = bits_space()
    table = measured(space)
    best = min(predicted(space, table, p) for p in everything(space))
    with pytest.raises(
        ValueError, match=r"fitness -1 cannot be reached: the best profile is predicted to have"
    ):
        cheapest_within(space, table, space.kinds[0], -1.0)
    assert not math.isinf(best)
