"""Hulls against their definition: the least error + multiplier * cost, for every multiplier."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretopress.search.allocation.hull import Hull

Points = list[tuple[float, float]]
points = st.lists(st.tuples(st.integers(0, 1000), st.integers(-50, 50)), min_size=1, max_size=12)


def least(found: Points, multiplier: float) -> float:
    return min(error + multiplier * cost for cost, error in found)


def corners(hull: Hull) -> Points:
    return list(zip(hull.cost.tolist(), hull.error.tolist(), strict=True))


@given(points, st.floats(0, 100))
def test_keeps_the_best_for_every_multiplier(found: Points, multiplier: float) -> None:
    assert least(corners(Hull.of(found)), multiplier) == pytest.approx(least(found, multiplier))


@given(points)
def test_falls_ever_more_slowly_below_all_points(found: Points) -> None:
    hull = Hull.of(found)
    slopes = np.diff(hull.error) / np.diff(hull.cost)
    assert (slopes < 0).all()
    assert (np.diff(slopes) > 0).all()
    assert all(hull.at(cost) <= error + 1e-9 for cost, error in found)
    assert set(corners(hull)) <= set(found)


@given(points, points, st.floats(0, 100))
def test_the_sum_is_the_hull_of_all_sums(first: Points, second: Points, multiplier: float) -> None:
    hull, share = Hull.of(first).plus(Hull.of(second))
    sums = [(a[0] + b[0], a[1] + b[1]) for a, b in itertools.product(first, second)]
    assert least(corners(hull), multiplier) == pytest.approx(least(sums, multiplier))
    rest = hull.cost - share
    assert hull.error == pytest.approx(Hull.of(first).at(share) + Hull.of(second).at(rest))


def test_nothing_is_cheaper_than_the_cheapest() -> None:
    hull = Hull.of([(3, 1.0), (5, 0.5)])
    assert hull.at([2.9, 3, 4, 9]).tolist() == [np.inf, 1.0, 0.75, 0.5]
