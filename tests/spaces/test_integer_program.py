"""The integer program against looking at every profile."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.spaces.space import Profile, Space
from tests.toys import everything, joint_space, minimum_limits, minimum_space

Values = list[list[float]]


def total(space: Space, values: Values, profile: Profile) -> float:
    return sum(values[u][n] for u, n in enumerate(profile) if space.active(profile, u))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 260), st.integers(0, 150), st.data())
def test_least_of_all_profiles_whose_levels_are_allowed(bits: int, macs: int, data: st.DataObject) -> None:
    space = joint_space(1)
    value = st.one_of(st.floats(-1, 10, allow_subnormal=False), st.just(math.inf))
    values = [[data.draw(value) for _ in unit.levels] for unit in space.units]
    for row in values:
        row[0] = min(row[0], 10.0)
    limits = {"bits": 10 + bits, "macs": 5 + macs}
    allowed = [p for p in everything(space) if space.fits(p, limits) and total(space, values, p) < math.inf]
    found = space.minimise(values, limits)
    if not allowed:
        assert found is None
        return
    assert found is not None
    assert space.canonical(found) == found
    assert space.fits(found, limits)
    assert total(space, values, found) == pytest.approx(
        min(total(space, values, p) for p in allowed), abs=1e-4
    )


def test_limits_hold_to_the_last_unit() -> None:
    space = minimum_space()
    limits = minimum_limits(space)
    for less in (0, 1, 100, 101):
        tight = {**limits, "parameters": limits["parameters"] - less}
        values = [[1.0, 0.0] for _ in space.units]
        found = space.minimise(values, tight)
        fitting = [p for p in everything(space) if space.fits(p, tight)]
        if not fitting:
            assert found is None
            continue
        assert found is not None
        assert total(space, values, found) == min(total(space, values, p) for p in fitting)
