from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.search.allocation.moves import Moves, dress, layer_type
from paretopress.search.methods.state import State, sample
from paretopress.spaces.space import Profile, Space
from paretopress.spaces.unit import Unit
from tests.toys import SPACES, bits_space, chain, joint_limits, joint_space


def random_profile(space: Space, seed: int) -> Profile:
    rng = np.random.default_rng(seed)
    return tuple(int(rng.integers(len(unit.levels))) for unit in space.units)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(list(SPACES)), st.integers(0, 10_000))
def test_costs_and_deltas_are_those_of_the_space(name: str, seed: int) -> None:
    make, make_limits = SPACES[name]
    space = make()
    moves = Moves(space, make_limits(space))
    profile = random_profile(space, seed)
    levels = np.array(profile)
    deltas = moves.deltas(levels)
    assert moves.fits(levels) == space.fits(profile, make_limits(space))
    for k, kind in enumerate(moves.kinds):
        here = space.cost(profile, kind)
        assert moves.total(levels)[k] == here
        for u, unit in enumerate(space.units):
            for n in range(len(unit.levels)):
                moved = (*profile[:u], n, *profile[u + 1 :])
                assert deltas[k, u, n] == space.cost(moved, kind) - here


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(list(SPACES)), st.booleans(), st.integers(0, 10_000))
def test_a_state_that_moved_is_that_of_its_levels(name: str, far: bool, seed: int) -> None:
    make, make_limits = SPACES[name]
    space = make()
    moves = Moves(space, make_limits(space))
    rng = np.random.default_rng(seed)
    first = State.at(moves, np.array(random_profile(space, seed)), far=far)
    state = first.copy()
    for _ in range(10):
        state.move_one((state.delta_KLU != 0).any(axis=0), rng)
    for moved, levels in ((state, state.levels_U), (first, np.array(random_profile(space, seed)))):
        fresh = State.at(moves, levels, far=far)
        assert moved.room_K == fresh.room_K
        assert moved.fits == space.fits(tuple(levels.tolist()), make_limits(space))
        np.testing.assert_array_equal(moved.delta_KLU, fresh.delta_KLU)
        np.testing.assert_array_equal(moved.up_LU, fresh.up_LU)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(list(SPACES)), st.booleans(), st.integers(0, 10_000))
def test_raises_and_lowerings_are_those_of_the_space(name: str, far: bool, seed: int) -> None:
    make, make_limits = SPACES[name]
    space, limits = make(), make_limits(make())
    profile = random_profile(space, seed)
    state = State.at(Moves(space, limits), np.array(profile), far=far)
    raises, lowerings = state.raises(), state.lowerings()
    exceeded = [kind for kind in limits if space.cost(profile, kind) > limits[kind]]
    for u, unit in enumerate(space.units):
        for n in range(len(unit.levels)):
            moved = (*profile[:u], n, *profile[u + 1 :])
            changes = {kind: space.cost(moved, kind) - space.cost(profile, kind) for kind in limits}
            rise = sum(Fraction(change, max(limits[kind], 1)) for kind, change in changes.items())
            near = far or n in unit.levels[profile[u]].neighbours
            lowers = [changes[kind] for kind in exceeded]
            falls = max(lowers) <= 0 and min(lowers) < 0 if exceeded else rise < 0
            assert raises[n, u] == (near and rise > 0 and space.fits(moved, limits))
            assert lowerings[n, u] == (near and falls)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(SPACES)), st.integers(0, 10_000))
def test_samples_fit_and_leave_no_step_up(name: str, seed: int) -> None:
    make, make_limits = SPACES[name]
    space = make()
    limits = make_limits(space)
    moves = Moves(space, limits)
    profile = sample(moves, np.random.default_rng(seed))
    assert space.fits(profile, limits)
    assert not State.at(moves, np.array(profile)).raises().any()


def test_lowering_gives_up_where_nothing_is_left() -> None:
    space = bits_space(blocks=1)
    moves = Moves(space, {"bits": 1})
    assert not State.at(moves, np.array([0, 0, 0])).lower(np.random.default_rng(0))


def test_the_dearest_keeps_every_branch() -> None:
    space = joint_space()
    labels = space.labels(Moves(space, joint_limits(space)).dearest)
    assert set(labels) == {"keep", "w4"}


def test_the_levels_of_dropped_units_come_from_elsewhere() -> None:
    space = joint_space(blocks=1)
    assert dress(space, (0, 0, 0, 1, 0), (1, 2, 1, 1, 2)) == (0, 2, 1, 1, 0)


def test_types_are_the_last_part_of_the_path() -> None:
    space = joint_space(blocks=1)
    assert [layer_type(space, u) for u in range(5)] == ["attention", "q", "k", "mlp", "up"]


def test_limits_that_oppose_each_other_end_the_lowering() -> None:
    costs = [(3, 7), (7, 1), (8, 5), (9, 6)]
    levels = chain((f"w{i + 2}", {"bits": b, "latency": t}) for i, (b, t) in enumerate(costs))
    units = tuple(Unit(f"u{i}", (f"u{i}",), i, "mlp", levels) for i in range(2))
    moves = Moves(Space(units, weights=2), {"bits": 14, "latency": 8})
    allowed = np.array([True, False])
    assert not State.at(moves, np.array([1, 2])).lower(np.random.default_rng(0), allowed)
