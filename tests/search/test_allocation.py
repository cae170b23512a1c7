import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.search.allocation import allocate, allocate_limits
from paretopress.spaces.space import Level, Profile, Space, Unit
from tests.toys import bits_space, chain, everything, joint_limits, joint_space

Errors = list[list[float]]


@st.composite
def trees(draw: st.DrawFn) -> tuple[Space, Errors]:
    """Up to three branches with up to two units each, and loose units; costs of two kinds; errors may be negative."""
    cost, error = st.integers(0, 40), st.floats(-1, 10, allow_subnormal=False)
    units: list[Unit] = []
    for b in range(draw(st.integers(1, 3))):
        parent = None
        if draw(st.booleans()):
            parent = len(units)
            keep = Level("keep", {"a": draw(cost), "b": draw(cost)}, (0,))
            units.append(Unit(f"{b}", (f"{b}",), b, "mlp", (Level("drop", {"a": 0, "b": 0}, (1,)), keep)))
        for n in range(draw(st.integers(0 if parent is not None else 1, 2))):
            levels = [
                (f"w{m + 2}", {"a": draw(cost), "b": draw(cost)}) for m in range(draw(st.integers(1, 3)))
            ]
            units.append(Unit(f"{b}.{n}", (f"{b}.{n}",), b, "mlp", chain(levels), parent))
    space = Space(tuple(units), {"a": draw(cost)})
    return space, [[draw(error) for _ in unit.levels] for unit in space.units]


def total(space: Space, errors: Errors, profile: Profile) -> float:
    return math.fsum(errors[u][n] for u, n in enumerate(profile) if space.active(profile, u))


@settings(max_examples=150, deadline=None)
@given(trees(), st.integers(0, 300))
def test_every_budget_as_by_exhaustive_enumeration(tree: tuple[Space, Errors], limit: int) -> None:
    space, errors = tree
    front = allocate(space, errors, "a")
    fitting = [p for p in everything(space) if space.cost(p, "a") <= limit]
    assert front.exact
    if not fitting:
        with pytest.raises(ValueError, match="below the cheapest profile"):
            front.best(limit)
        return
    best = front.best(limit)
    assert space.cost(best, "a") <= limit
    least = min(total(space, errors, p) for p in fitting)
    assert total(space, errors, best) == pytest.approx(least, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(trees())
def test_points_are_what_they_say(tree: tuple[Space, Errors]) -> None:
    space, errors = tree
    front = allocate(space, errors, "a")
    points = list(front)
    for i, (cost, error) in enumerate(points):
        assert space.cost(front.profile(i), "a") == cost
        assert total(space, errors, front.profile(i)) == pytest.approx(error, abs=1e-9)
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in itertools.pairwise(points))


@settings(max_examples=60, deadline=None)
@given(trees(), st.integers(8, 30), st.integers(0, 300))
def test_rounded_costs_never_exceed_the_budget(tree: tuple[Space, Errors], states: int, limit: int) -> None:
    space, errors = tree
    front = allocate(space, errors, "a", states)
    for i, (cost, _) in enumerate(front):
        assert space.cost(front.profile(i), "a") <= cost
    if limit >= front.costs[0]:
        assert space.cost(front.best(limit), "a") <= limit
    assert front.costs[0] == space.cost(space.extreme("a"), "a")


@settings(max_examples=60, deadline=None)
@given(trees(), st.integers(0, 300), st.integers(0, 300))
def test_two_limits_as_by_exhaustive_enumeration(tree: tuple[Space, Errors], a: int, b: int) -> None:
    space, errors = tree
    limits = {"a": a, "b": b}
    fitting = [p for p in everything(space) if space.fits(p, limits)]
    if not fitting:
        with pytest.raises(ValueError, match=r"below the cheapest profile|no profile was found"):
            allocate_limits(space, errors, limits)
        return
    profile = allocate_limits(space, errors, limits)
    assert space.fits(profile, limits)
    least = min(total(space, errors, p) for p in fitting)
    assert total(space, errors, profile) == pytest.approx(least, abs=1e-5)


def test_joint_space_under_two_limits() -> None:
    space, limits = joint_space(), joint_limits(joint_space())
    rng = np.random.default_rng(0)
    errors = [[float(e) for e in rng.random(len(unit.levels))] for unit in space.units]
    best = min(total(space, errors, p) for p in everything(space) if space.fits(p, limits))
    assert total(space, errors, allocate_limits(space, errors, limits)) == pytest.approx(best, abs=1e-6)


def test_infinite_errors_are_never_chosen() -> None:
    space = bits_space(blocks=1)
    errors = [[math.inf, 1.0, 0.5, math.inf] for _ in space.units]
    front = allocate(space, errors, "bits")
    assert {level for i in range(len(front)) for level in front.profile(i)} == {1, 2}


def test_refuses_errors_that_do_not_fit() -> None:
    space = bits_space(blocks=1)
    with pytest.raises(ValueError, match="2 rows of errors for 3 units"):
        allocate(space, [[0.0] * 4] * 2, "bits")
    with pytest.raises(ValueError, match="has 4 levels but 3 errors"):
        allocate(space, [[0.0] * 3] * 3, "bits")
    with pytest.raises(ValueError, match="no level with a finite error"):
        allocate(space, [[math.inf] * 4] * 3, "bits")
    with pytest.raises(ValueError, match="must be numbers or inf"):
        allocate(space, [[math.nan] * 4] * 3, "bits")


def test_a_7b_model_takes_seconds_at_most() -> None:
    rng = np.random.default_rng(0)
    shapes = [4096 * 4096, 1024 * 4096, 14336 * 4096]
    units = tuple(
        Unit(
            f"{u}",
            (f"{u}",),
            u // 7,
            "mlp",
            chain((f"w{b}", {"bits": b * shapes[u % 3]}) for b in range(2, 7)),
        )
        for u in range(224)
    )
    space = Space(units)
    errors = [sorted(map(float, rng.random(5)), reverse=True) for _ in units]
    begun = time.process_time()
    front = allocate(space, errors, "bits")
    assert time.process_time() - begun < 5.0
    assert front.exact
    limit = 3 * sum(shapes[u % 3] for u in range(224))
    assert space.cost(front.best(limit), "bits") <= limit
