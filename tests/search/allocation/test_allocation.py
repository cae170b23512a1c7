import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.search.allocation.allocation import allocate, allocate_limits
from paretopress.search.allocation.hull import Floats
from paretopress.spaces.space import Profile, Space
from paretopress.spaces.unit import Level, Unit
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
    assert front.bound(limit) <= least + 1e-9
    assert front.gap(limit) == 0.0


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


INSIDE, OUTSIDE = 14, 14


def irregular(seed: int) -> tuple[Space, Errors]:
    """Units whose costs have nothing in common, half of them under a branch: mostly too many sums to keep all."""
    rng = np.random.default_rng(seed)
    branch = (Level("drop", {"a": 0}, (1,)), Level("keep", {"a": int(rng.integers(10**6))}, (0,)))
    units, errors = [Unit("0", ("0",), 0, "mlp", branch)], [[float(rng.uniform(0, 10)), 0.0]]
    for u in range(INSIDE + OUTSIDE):
        costs = np.sort(rng.integers(0, 10**7, 5))
        levels = chain((f"w{n + 2}", {"a": int(cost)}) for n, cost in enumerate(costs))
        units.append(Unit(f"0.{u}", (f"0.{u}",), 0, "mlp", levels, 0 if u < INSIDE else None))
        errors.append((np.exp(-1.3 * np.arange(5)) * rng.lognormal() * rng.uniform(0.6, 1.4, 5)).tolist())
    return Space(tuple(units), {"a": 7}), errors


def pruned(cost: Floats, error: Floats) -> tuple[Floats, Floats]:
    """The non-dominated in order of cost."""
    order = np.lexsort((error, cost))
    cost, error = cost[order], error[order]
    kept = error < np.concatenate([[np.inf], np.minimum.accumulate(error)[:-1]])
    return cost[kept], error[kept]


def whole_front(space: Space, errors: Errors) -> tuple[Floats, Floats]:
    """Cost and error of an `irregular` space's front, unit after unit."""
    cost, error = np.zeros(1), np.zeros(1)
    for u in range(1, 1 + INSIDE + OUTSIDE):
        if u == 1 + INSIDE:
            keep = space.units[0].levels[1].costs["a"]
            cost, error = np.append(cost + keep, 0), np.append(error + errors[0][1], errors[0][0])
        own = [level.costs["a"] for level in space.units[u].levels]
        cost, error = pruned(np.add.outer(cost, own).ravel(), np.add.outer(error, errors[u]).ravel())
    return cost + space.fixed["a"], error


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(8, 4000))
def test_gaps_hold_where_not_all_states_are_kept(seed: int, states: int) -> None:
    space, errors = irregular(seed)
    front = allocate(space, errors, "a", states)
    costs, least = whole_front(space, errors)
    assert front.costs[0] == costs[0]
    for limit in np.linspace(costs[0], costs[-1] + 1, 50).astype(int).tolist():
        profile, best = front.best(limit), float(least[costs <= limit][-1])
        ours = total(space, errors, profile)
        assert space.cost(profile, "a") <= limit
        assert ours - front.gap(limit) - 1e-9 <= best <= ours + 1e-9
        assert front.bound(limit) <= best + 1e-9
        assert ours - best < 0.1 * least[0]


@settings(max_examples=60, deadline=None)
@given(trees(), st.integers(0, 300), st.integers(0, 300))
def test_two_limits_as_by_exhaustive_enumeration(tree: tuple[Space, Errors], a: int, b: int) -> None:
    space, errors = tree
    limits = {"a": a, "b": b}
    fitting = [p for p in everything(space) if space.fits(p, limits)]
    if not fitting:
        with pytest.raises(ValueError, match=r"below the cheapest profile|no profile is within all"):
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


def test_gaps_are_above_0_where_nothing_is_proved() -> None:
    space, errors = irregular(0)
    front = allocate(space, errors, "a", 8)
    assert not front.exact
    assert max(front.gap(int(cost)) for cost in front.costs[::50]) > 0
    with pytest.raises(ValueError, match="budget 0 is below the cheapest profile"):
        front.gap(0)
    with pytest.raises(ValueError, match="budget 0 is below the cheapest profile"):
        front.bound(0)


def model(units: int) -> tuple[Space, Errors]:
    """Layers of three shapes at 2 to 6 bits; errors fall about exponentially."""
    rng = np.random.default_rng(0)
    shapes = [4096 * 4096, 1024 * 4096, 14336 * 4096]
    found = tuple(
        Unit(
            f"{u}",
            (f"{u}",),
            u // 7,
            "mlp",
            chain((f"w{b}", {"bits": b * shapes[u % 3]}) for b in range(2, 7)),
        )
        for u in range(units)
    )
    return Space(found), [
        (rng.lognormal() * np.exp(-1.3 * np.arange(5)) * rng.uniform(0.6, 1.4, 5)).tolist() for _ in found
    ]


@pytest.mark.parametrize("units", [224, 1000])
def test_large_models_are_exact_at_every_budget(units: int) -> None:
    space, errors = model(units)
    front = allocate(space, errors, "bits")
    low, high = (space.cost(space.extreme("bits", largest), "bits") for largest in (False, True))
    assert front.exact
    for limit in np.linspace(low, high, 20).astype(int).tolist():
        profile = front.best(limit)
        assert space.cost(profile, "bits") <= limit
        ours = total(space, errors, profile)
        assert front.bound(limit) <= ours + 1e-9
        assert ours - front.bound(limit) < 1e-3 * front.errors[0]


def test_one_budget_is_as_good_as_by_integer_programming() -> None:
    space, errors = model(60)
    front = allocate(space, errors, "bits")
    for bits in (2.4, 3.0, 4.2):
        limit = int(bits / 2 * front.costs[0])
        by_program = allocate_limits(space, errors, {"bits": limit})
        ours = total(space, errors, front.best(limit))
        assert ours <= total(space, errors, by_program) + 1e-9
        assert ours == pytest.approx(total(space, errors, by_program), rel=1e-5)
