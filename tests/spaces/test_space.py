"""Spaces against exhaustive enumeration."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.spaces import Level, Profile, Space, Unit
from paretopress.spaces.space import DENSE
from tests.toys import chain, joint_space


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Small spaces: chains of levels with two cost kinds, some units under a droppable branch."""
    units: list[Unit] = []
    for branch in range(draw(st.integers(1, 2))):
        parent = None
        if draw(st.booleans()):
            keep = {"bits": draw(st.integers(0, 3)), "macs": draw(st.integers(0, 3))}
            drop = (Level("drop", {"bits": 0, "macs": 0}, (1,)), Level("keep", keep, (0,)))
            parent = len(units)
            units.append(Unit(f"branch{branch}", (f"b{branch}.x",), branch, "mlp", drop))
        for layer in range(draw(st.integers(1, 2))):
            costs = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3))
            levels = chain((f"w{i + 2}", {"bits": b, "macs": m}) for i, (b, m) in enumerate(costs))
            name = f"b{branch}.l{layer}"
            units.append(Unit(name, (name,), branch, "mlp", levels, parent))
    return Space(tuple(units), {"bits": draw(st.integers(0, 5)), "macs": 0}, 10)


def profiles(space: Space) -> list[Profile]:
    return list(product(*(range(len(unit.levels)) for unit in space.units)))


@given(spaces())
@settings(max_examples=60, deadline=None)
def test_cost_sums_what_is_active(space: Space) -> None:
    for profile in profiles(space):
        expected = space.fixed["bits"]
        for unit, chosen in zip(space.units, profile, strict=True):
            dropped = unit.parent is not None and space.level(profile, unit.parent).label == "drop"
            expected += 0 if dropped else unit.levels[chosen].costs["bits"]
        assert space.cost(profile, "bits") == expected
        assert space.cost(space.canonical(profile), "bits") == expected


@given(spaces())
@settings(max_examples=60, deadline=None)
def test_extremes_are_the_cheapest_and_dearest(space: Space) -> None:
    for kind in space.kinds:
        costs = [space.cost(profile, kind) for profile in profiles(space)]
        assert space.cost(space.extreme(kind), kind) == min(costs)
        assert space.cost(space.extreme(kind, largest=True), kind) == max(costs)


@given(spaces())
@settings(max_examples=60, deadline=None)
def test_equal_keys_are_equal_models(space: Space) -> None:
    for profile in profiles(space):
        canonical = space.canonical(profile)
        assert space.key(profile) == space.key(canonical)
        assert space.canonical(space.parse(space.describe(profile))) == canonical
    canonicals = {space.canonical(profile) for profile in profiles(space)}
    assert len({space.key(profile) for profile in canonicals}) == len(canonicals)


@given(spaces(), st.data())
@settings(max_examples=100, deadline=None)
def test_uniform_never_exceeds_the_limits(space: Space, data: st.DataObject) -> None:
    bits = sorted({space.cost(profile, "bits") for profile in profiles(space)})
    limits = {"bits": data.draw(st.sampled_from(bits))}
    if data.draw(st.booleans()):
        feasible = [space.cost(p, "macs") for p in profiles(space) if space.fits(p, limits)]
        limits["macs"] = data.draw(st.sampled_from(sorted(feasible)))
    try:
        uniform = space.uniform(limits)
    except ValueError:
        assert len(limits) == 2
        return
    assert space.fits(uniform, limits)


def test_uniform_takes_the_largest_level_and_raises_the_first_units() -> None:
    levels = chain((f"w{bits}", {"bits": bits}) for bits in (2, 3, 4))
    space = Space(tuple(Unit(f"u{i}", (f"u{i}",), i, "mlp", levels) for i in range(4)), {}, 4)
    assert space.labels(space.uniform({"bits": 12})) == ("w3", "w3", "w3", "w3")
    assert space.labels(space.uniform({"bits": 14})) == ("w4", "w4", "w3", "w3")


def test_the_joint_uniform_keeps_its_branches() -> None:
    drop = (Level("drop", {"bits": 0}, (1,)), Level("keep", {"bits": 0}, (0,)))
    levels = chain((f"w{bits}", {"bits": bits}) for bits in (2, 4))
    space = Space((Unit("b", ("x", "y"), 0, "mlp", drop), Unit("x", ("x",), 0, "mlp", levels, 0)), {}, 1)
    assert space.labels(space.uniform({"bits": 3})) == ("keep", "w2")
    assert space.labels(space.uniform({"bits": 1})) == ("drop", "w2")


def test_errors_name_the_unit_and_the_remedy() -> None:
    levels = chain((f"w{bits}", {"bits": bits}) for bits in (2, 4))
    space = Space((Unit("x", ("x",), 0, "mlp", levels),), {}, 1)
    with pytest.raises(
        ValueError, match=r"budget 1 bits is below the cheapest profile \(2; the most expensive is 4\)"
    ):
        space.check({"bits": 1})
    with pytest.raises(ValueError, match="cost 'macs' is unknown here"):
        space.check({"macs": 1})
    with pytest.raises(ValueError, match="unit 'y' is not in this space"):
        space.parse({"y": "w2"})
    with pytest.raises(ValueError, match="unit 'x' has no level 'w3'; it has w2, w4"):
        space.parse({"x": "w3"})
    with pytest.raises(ValueError, match="unit 'x' has no level; every unit needs one"):
        space.parse({})


def test_the_dense_model_is_canonical_in_every_space() -> None:
    assert joint_space().canonical(DENSE) == DENSE
