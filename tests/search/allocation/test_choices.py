"""Sums of fronts against the plain min-plus convolution."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.search.allocation.choices import Choices, Ints, both, either, of_unit, together
from paretopress.search.allocation.hull import Floats

MOST = 2**18


def front(seed: int, size: int, step: int, convex: float, unit: int = 0) -> Choices:
    """A front of `size` states at random multiples of `step`: falling exponentially plus noise."""
    rng = np.random.default_rng(seed)
    costs = step * np.cumsum(rng.integers(1, 4, size))
    falling = np.exp(-3 * np.arange(size) / size) + (1 - convex) * rng.random(size)
    return of_unit(unit, range(size), costs.tolist(), np.sort(falling)[::-1].tolist())


def least(first: Choices, second: Choices, limits: Ints) -> Floats:
    """The least error of two states within each limit, by looking at all pairs."""
    cost = (first.cost[:, None] + second.cost).ravel()
    error = (first.error[:, None] + second.error).ravel()
    return np.array([error[cost <= limit].min() for limit in limits])


def level(choices: Choices, state: int, units: int) -> list[int]:
    levels = [-1] * units
    choices.origin.fill(state, levels)
    return levels


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10_000),
    st.integers(20, 90),
    st.integers(20, 90),
    st.sampled_from([1, 6, 1_000_003]),
    st.floats(0, 1),
)
def test_sums_on_a_grid_are_exact_however_far_from_convex(
    seed: int, size: int, other: int, step: int, convex: float
) -> None:
    """Most of these have too many pairs for their cells to look at all."""
    first, second = front(seed, size, step, convex), front(seed + 1, other, step, convex, 1)
    found = both(first, second, quantum=1, most_states=0)
    assert found.exact
    assert found.error == pytest.approx(least(first, second, found.cost), abs=1e-12)
    limits = np.arange(found.cost[0], found.cost[-1], step)
    index = np.searchsorted(found.cost, limits, side="right") - 1
    assert found.error[index] == pytest.approx(least(first, second, limits), abs=1e-12)


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 10_000), st.integers(2, 10**5))
def test_states_are_what_they_say_where_costs_are_told_apart_coarsely(seed: int, quantum: int) -> None:
    parts, costs, errors = [], [], []
    for n in range(2):
        fine = front(seed + n, 300, 9_973, 0.5, n)
        jitter = np.random.default_rng(seed).integers(0, 5_000, len(fine))
        costs.append((fine.cost + jitter).tolist())
        errors.append(fine.error.tolist())
        parts.append(of_unit(n, range(len(fine)), costs[n], errors[n]))
    found = both(parts[0], parts[1], quantum, most_states=0)
    assert not found.exact
    assert found.cost[0] == parts[0].cost[0] + parts[1].cost[0]
    assert found.error[-1] == pytest.approx(parts[0].error[-1] + parts[1].error[-1])
    for state in range(0, len(found), 7):
        first, second = level(found, state, 2)
        assert found.cost[state] == costs[0][first] + costs[1][second]
        assert found.error[state] == pytest.approx(errors[0][first] + errors[1][second])
    best = least(parts[0], parts[1], found.cost)
    assert (found.error >= best - 1e-12).all()
    assert (found.hull.at(found.cost) <= best + 1e-9).all()


def test_a_choice_of_one_part_or_the_other() -> None:
    first = of_unit(0, [0, 1], [5, 9], [3.0, 1.0])
    second = of_unit(1, [4], [7], [2.0])
    found = either(first, second)
    assert found.cost.tolist() == [5, 7, 9]
    assert found.error.tolist() == [3.0, 2.0, 1.0]
    assert [level(found, n, 2) for n in range(3)] == [[0, -1], [-1, 4], [1, -1]]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_all_parts_are_summed_once(count: int) -> None:
    parts = [of_unit(n, [0, 1], [0, 2**n], [1.0, 0.0]) for n in range(count)]
    found = together(parts, 1, MOST)
    assert found.cost[-1] == 2**count - 1
    assert level(found, len(found) - 1, count) == [1] * count


def test_equal_units_are_exact_although_every_share_is_as_good() -> None:
    parts = [of_unit(n, [0, 1, 2], [0, 1, 3], [1.0, 0.75, 0.25]) for n in range(200)]
    found = together(parts, 1, MOST)
    # All levels lie on one line; 599 is no sum of 200 costs.
    costs = [cost for cost in range(601) if cost != 599]
    assert found.exact
    assert found.cost.tolist() == costs
    assert found.error == pytest.approx([200 - 0.25 * cost for cost in costs])
