"""Minimum counts against counting."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from paretopress.search.allocation.allocation import allocate_limits
from paretopress.spaces.budget import BudgetConfig
from paretopress.spaces.configuration import MinimumConfig, SpaceConfig
from paretopress.spaces.minimums import with_minimums
from paretopress.spaces.space import Profile, Space
from tests.spaces.test_construction import lay_out
from tests.toys import bits_space, everything, joint_space


def at(space: Space, profile: Profile, label: str, pattern: str = "") -> int:
    """Units that count, match and are at the label."""
    return sum(level == label and pattern in name for name, level in space.describe(profile).items())


@pytest.mark.parametrize(
    ("label", "pattern", "count"), [("keep", "attention", 1), ("w4", "", 2), ("w2", "q", 2), ("drop", "", 3)]
)
def test_limits_hold_exactly_where_enough_units_are_at_the_level(
    label: str, pattern: str, count: int
) -> None:
    plain = joint_space()
    space = with_minimums(plain, [MinimumConfig(count=count, label=label, units=pattern)])
    seen = set()
    for profile in everything(plain):
        enough = at(space, profile, label, pattern) >= count
        assert space.fits(profile, space.always) == enough
        assert space.canonical(profile) == profile
        assert all(space.cost(profile, kind) == plain.cost(profile, kind) for kind in plain.kinds)
        seen.add(enough)
    assert seen == {True, False}


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 2), st.integers(2, 4), st.data())
def test_allocation_under_minimums_as_by_enumeration(
    count: int, kept: int, bits: int, data: st.DataObject
) -> None:
    minimums = [
        MinimumConfig(count=count, label="w4"),
        MinimumConfig(count=kept, label="keep", units="attention"),
    ]
    space = with_minimums(joint_space(), minimums)
    error = st.floats(-1, 10, allow_subnormal=False)
    errors = [[data.draw(error) for _ in unit.levels] for unit in space.units]
    limits = {"bits": 10 + bits * 68, **space.always}
    fitting = [
        p
        for p in everything(space)
        if space.cost(p, "bits") <= limits["bits"]
        and at(space, p, "w4") >= count
        and at(space, p, "keep", "attention") >= kept
    ]

    def total(profile: Profile) -> float:
        return sum(errors[u][n] for u, n in enumerate(profile) if space.active(profile, u))

    if not fitting:
        with pytest.raises(ValueError, match="no profile is within all of"):
            allocate_limits(space, errors, limits)
        return
    found = allocate_limits(space, errors, limits)
    assert space.fits(found, limits)
    assert total(found) == pytest.approx(min(map(total, fitting)), abs=1e-5)


def test_every_budget_of_a_space_keeps_its_minimums() -> None:
    config = SpaceConfig(
        levels=("w2g128", "w4g128", "dense"),
        drop="branches",
        at_least=(
            MinimumConfig(count=2, label="keep", units="attention"),
            MinimumConfig(count=1, label="dense", units=r"attn\.o$"),
        ),
    )
    space = lay_out(config)
    limits = BudgetConfig(bits=3).limits(space)
    assert next(iter(limits)) == "bits"
    assert {kind: limits[kind] for kind in space.always} == {
        "units not at keep in attention": 0,
        r"units not at dense in attn\.o$": 1,
    }
    uniform = space.describe(space.uniform(limits))
    assert [uniform[f"blocks.{b}.attention"] for b in range(2)] == ["keep", "keep"]
    assert "dense" in [uniform[f"h.{b}.attn.o"] for b in range(2)]


def test_of_two_minimums_of_the_same_units_the_larger_holds() -> None:
    for counts in ((4, 1), (1, 4)):
        minimums = [MinimumConfig(count=count, label="w4") for count in counts]
        (spare,) = with_minimums(bits_space(), minimums).always.values()
        assert spare == len(bits_space().units) - 4


def test_without_minimums_a_space_is_as_before() -> None:
    space = bits_space()
    assert with_minimums(space, ()) is space
    assert not space.always


def test_minimums_that_cannot_be_reached_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"space.at_least asks for 7 units at 'w4', but 6 can take it; lower the count"
    ):
        with_minimums(bits_space(), [MinimumConfig(count=7, label="w4")])
    with pytest.raises(ValueError, match="asks for 1 units at 'w3g128', but 0 can take it"):
        lay_out(SpaceConfig(levels=("w4g128", "w8"), at_least=(MinimumConfig(count=1, label="w3g128"),)))


def test_minimums_and_budgets_that_exclude_each_other_are_refused() -> None:
    space = with_minimums(bits_space(), [MinimumConfig(count=6, label="w4")])
    needed = 1000 + 4 * space.weights
    assert set(space.labels(space.cheapest({"bits": needed, **space.always}))) == {"w4"}
    with pytest.raises(ValueError, match="no profile is within all of .* 0 units not at w4"):
        space.cheapest({"bits": needed - 1, **space.always})


def test_bad_patterns_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"units pattern '\(' is not a regular expression"):
        MinimumConfig(count=1, label="w4", units="(")
