import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.search.moves import Moves, dress, layer_type
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


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(SPACES)), st.integers(0, 10_000))
def test_samples_fit_and_leave_no_step_up(name: str, seed: int) -> None:
    make, make_limits = SPACES[name]
    space = make()
    limits = make_limits(space)
    moves = Moves(space, limits)
    profile = moves.sample(np.random.default_rng(seed))
    assert space.fits(profile, limits)
    assert not moves.raises(np.array(profile)).any()


def test_lowering_gives_up_where_nothing_is_left() -> None:
    space = bits_space(blocks=1)
    moves = Moves(space, {"bits": 1})
    assert moves.lower(np.array([0, 0, 0]), np.random.default_rng(0)) is None


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
    assert moves.lower(np.array([1, 2]), np.random.default_rng(0), allowed) is None
