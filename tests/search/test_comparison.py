"""Ranks, allocations and the inverse question, against exhaustive definitions."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.search.comparison import allocated, cheapest_within, predicted, rank_correlations
from paretopress.search.moves import Moves
from paretopress.search.sensitivity import Sensitivity, probes
from paretopress.spaces.space import Space
from tests.toys import ToyEvaluator, bits_limits, bits_space, everything, joint_limits, joint_space


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
    found = allocated(space, table, limits)
    assert space.fits(found, limits)
    assert predicted(space, table, found) == pytest.approx(best)


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


def test_a_bound_that_no_profile_reaches() -> None:
    space = bits_space()
    table = measured(space)
    best = min(predicted(space, table, p) for p in everything(space))
    with pytest.raises(
        ValueError, match=r"fitness -1 cannot be reached: the best profile is predicted to have"
    ):
        cheapest_within(space, table, space.kinds[0], -1.0)
    assert not math.isinf(best)
