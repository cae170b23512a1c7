"""The formula: answers that depend on nothing but the question."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.speed.overhead import layered_space
from paretopress.search.allocation.allocation import allocate, allocate_limits
from paretopress.spaces.space import Profile, Space
from paretopress.workers import Landscape
from tests.toys import SPACES, bits_space, drop_space, joint_space, ladder_space
from tests.workers.simulation.simulations import CONSTRAINED, ROUGH, answers, at, best_of_all, random_profiles


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> Space:
    return SPACES[request.param][0]()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SPACES)), st.integers(0, 2**32), st.data())
def test_a_value_depends_on_profile_and_sequence_alone(name: str, seed: int, data: st.DataObject) -> None:
    """Asked in parts, in any order, among any others, of another object: the same bits."""
    space = SPACES[name][0]()
    landscape = Landscape(space, 32, seed, **ROUGH)
    profiles = random_profiles(space, data.draw(st.integers(1, 40)), seed)
    whole = {e.trial.profile: e.values for e in answers(landscape, profiles, at(0, 16))}
    some = data.draw(st.lists(st.sampled_from(profiles), min_size=1, max_size=10))
    start = data.draw(st.integers(0, 15))
    stop = data.draw(st.integers(start + 1, 16))
    again = Landscape(space, 32, seed, **ROUGH)
    for evaluation in answers(again, some, at(start, stop)):
        assert evaluation.values == whole[evaluation.trial.profile][start:stop]


def test_a_big_space_is_answered_alike_in_any_company() -> None:
    """Where sums are long enough for threads and vector instructions to order them differently."""
    landscape = Landscape(layered_space(3000), 32, 1, **ROUGH)
    profiles = random_profiles(landscape.space, 400)
    together = answers(landscape, profiles, at(0, 5))
    for place in (0, 7, 399):
        (alone,) = answers(landscape, profiles[place : place + 1], at(3, 4))
        assert alone.values == together[place].values[3:4]


def test_models_that_are_the_same_have_the_same_values() -> None:
    space = joint_space()
    profiles = random_profiles(space, 200)
    landscape = Landscape(space, 32, 0, **ROUGH)
    canonical = [space.canonical(p) for p in profiles]
    assert any(p != c for p, c in zip(profiles, canonical, strict=True))
    both = [answers(landscape, found, at(0, 4)) for found in (profiles, canonical)]
    assert [e.values for e in both[0]] == [e.values for e in both[1]]


def test_fresh_fidelities_and_data_sets_name_the_sequences_they_say() -> None:
    space = bits_space()
    landscape = Landscape(space, 32, 0, **ROUGH)
    profile = random_profiles(space, 1)
    (pool,) = answers(landscape, profile, at(0, 32))
    (fresh,) = answers(landscape, profile, at(4, 9, seed=7))
    assert fresh.values == tuple(pool.values[row] for row in at(4, 9, seed=7).rows(32))
    (other,) = answers(landscape, profile, at(0, 32, data="validation"))
    assert not set(other.values) & set(pool.values)
    (elsewhere,) = answers(Landscape(space, 32, 1, **ROUGH), profile, at(0, 32))
    assert not set(elsewhere.values) & set(pool.values)


def test_effects_rise_as_cost_falls(space: Space) -> None:
    landscape = Landscape(space, 32, 3)
    for unit, row in zip(space.units, landscape.errors, strict=True):
        assert min(row) == 0
        if unit.droppable:
            assert row[unit.index["drop"]] > 0
        elif len(row) > 1:
            kind = space.kinds[0]
            by_cost = [
                error for _, error in sorted(zip([v.costs[kind] for v in unit.levels], row, strict=True))
            ]
            assert all(a > b for a, b in itertools.pairwise(by_cost))


def test_a_dropped_branch_is_worse_than_its_units_at_their_cheapest() -> None:
    space = joint_space()
    landscape = Landscape(space, 32, 2)
    dearest = tuple(len(unit.levels) - 1 for unit in space.units)
    cheapest = tuple(
        row.index(max(row)) if u.parent == 0 else dearest[i]
        for i, (u, row) in enumerate(zip(space.units, landscape.errors, strict=True))
    )
    dropped = (space.units[0].index["drop"], *dearest[1:])
    best, cheap, none = landscape.expected([dearest, cheapest, dropped])
    assert best == 0
    assert best < cheap < none


@pytest.mark.parametrize("make", [bits_space, ladder_space, drop_space, joint_space])
def test_interactions_are_pairs_within_reach_of_either_sign(make: Callable[[int], Space]) -> None:
    """A whole profile is the sum of what single units and pairs do; pairs far apart do nothing."""
    space = make(4)
    landscape = Landscape(space, 32, 5, interaction=0.7)
    dearest = tuple(int(np.argmin(row)) for row in landscape.errors)

    def lifted(profile: Profile, units: Sequence[int]) -> Profile:
        return tuple(profile[u] if u in units else dearest[u] for u in range(len(profile)))

    signs = set()
    for profile in random_profiles(space, 5):
        units = [u for u in range(len(profile)) if space.active(profile, u)]
        pairs = list(itertools.combinations(units, 2))
        single = dict(zip(units, landscape.expected([lifted(profile, [u]) for u in units]), strict=True))
        assert list(single.values()) == pytest.approx([landscape.errors[u][profile[u]] for u in units])
        double = landscape.expected([lifted(profile, pair) for pair in pairs])
        joint = [value - single[u] - single[v] for (u, v), value in zip(pairs, double, strict=True)]
        for (u, v), effect in zip(pairs, joint, strict=True):
            if abs(space.units[u].block - space.units[v].block) > 1:
                assert effect == pytest.approx(0, abs=1e-12)
            signs.add(np.sign(round(effect, 9)))
        (whole,) = landscape.expected([profile])
        assert whole == pytest.approx(math.fsum([*single.values(), *joint]))
        assert whole > 0
    assert {-1.0, 1.0} <= signs


@pytest.mark.parametrize("saturation", [-2.0, 0.5, 3.0])
def test_saturation_bends_but_keeps_the_order(saturation: float) -> None:
    space = bits_space()
    profiles = random_profiles(space, 30)
    straight = np.array(Landscape(space, 32, 0, interaction=0.5).expected(profiles))
    bent = np.array(Landscape(space, 32, 0, interaction=0.5, saturation=saturation).expected(profiles))
    assert bent == pytest.approx((1 - np.exp(-saturation * straight)) / saturation)
    assert (np.argsort(bent) == np.argsort(straight)).all()
    assert ((bent < straight) == (saturation > 0)).all()


def test_sequences_scatter_around_the_expected_value() -> None:
    space = layered_space(70)
    landscape = Landscape(space, 4000, 1, interaction=0.3, saturation=1.0, spread=0.4, noise=0.2)
    profiles = random_profiles(space, 3)
    wanted = landscape.expected(profiles)
    for evaluation, mean in zip(answers(landscape, profiles, at(0, 4000)), wanted, strict=True):
        error = np.std(evaluation.values) / math.sqrt(4000)
        assert abs(evaluation.fitness - mean) < 4 * error
    quiet = Landscape(space, 4000, 1, noise=0.2)
    (evaluation,) = answers(quiet, profiles[:1], at(0, 4000))
    assert np.std(evaluation.values) == pytest.approx(0.2 * quiet.expected(profiles[:1])[0], rel=0.05)


def test_similar_profiles_rise_and_fall_together() -> None:
    """Which is what makes paired comparisons worth their name."""
    landscape = Landscape(layered_space(70), 400, 1, spread=0.4)
    (profile,) = random_profiles(landscape.space, 1)
    near = ((profile[0] + 1) % 5, *profile[1:])
    first, second = (np.array(e.values) for e in answers(landscape, [profile, near], at(0, 400)))
    assert np.std(second - first) < 0.2 * np.std(first)
    assert np.ptp((second - first) / first) > 0


@pytest.mark.parametrize("name", CONSTRAINED)
def test_the_additive_part_is_minimised_exactly_by_allocation(name: str) -> None:
    make, limits_of = SPACES[name]
    space = make()
    limits = limits_of(space)
    landscape = Landscape(space, 32, 4, saturation=1.0)
    chosen = [allocate_limits(space, landscape.errors, limits)]
    if len(limits) == 1:
        ((kind, limit),) = limits.items()
        chosen.append(allocate(space, landscape.errors, kind).best(limit))
    assert all(space.fits(profile, limits) for profile in chosen)
    assert landscape.expected(chosen) == pytest.approx([best_of_all(landscape, limits)] * len(chosen))


@pytest.mark.parametrize(("key", "value"), [("interaction", 1.5), ("noise", -0.1)])
def test_settings_that_could_make_values_negative_are_refused(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{key} {value} is outside 0 to 0\.\d; give a share within it"):
        Landscape(bits_space(), 32, 0, **{key: value})


def test_fingerprints_tell_landscapes_apart() -> None:
    space = bits_space()
    made = [
        Landscape(space, 32),
        Landscape(space, 32, 1),
        Landscape(space, 32, noise=0.1),
        Landscape(bits_space(3), 32),
    ]
    assert len({landscape.fingerprint for landscape in made}) == len(made)
    assert Landscape(space, 32).fingerprint == made[0].fingerprint
