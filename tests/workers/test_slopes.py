"""Slopes of the formula: the changes that its own values make."""

import math
import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.evaluators.passes import passes
from paretopress.evaluators.trial import Fidelity, Slopes, Trial
from paretopress.spaces.space import DENSE, Profile
from paretopress.workers import Landscape, LocalPool, SimulatedPool
from tests.benchmarks.overhead import layered_space
from tests.toys import SPACES, bits_space, joint_space
from tests.workers.simulations import ROUGH, answers, at, random_profiles

CALM = {name: value for name, value in ROUGH.items() if name != "noise"}


def slopes_of(landscape: Landscape, profile: Profile, fidelity: Fidelity) -> Slopes:
    (found,) = landscape.evaluate([Trial(0, profile, fidelity, slopes=True)])
    assert found.error is None
    assert (found.values, found.fitness) == ((), math.inf)
    assert found.slopes is not None
    return found.slopes


def by_moving(
    landscape: Landscape, base: Profile, fidelity: Fidelity
) -> dict[str, dict[str, tuple[Profile, float]]]:
    """The profile that each move leads to and what it changes, by evaluating both."""
    space = landscape.space
    moves = {
        (unit.name, level.label): (*base[:u], i, *base[u + 1 :])
        for u, unit in enumerate(space.units)
        if space.active(base, u)
        for i, level in enumerate(unit.levels)
        if i != base[u]
    }
    here, *there = answers(landscape, [base, *moves.values()], fidelity)
    found: dict[str, dict[str, tuple[Profile, float]]] = {unit.name: {} for unit in space.units}
    for ((unit, label), profile), evaluation in zip(moves.items(), there, strict=True):
        found[unit][label] = profile, evaluation.fitness - here.fitness
    return found


@settings(max_examples=60)
@given(st.sampled_from(sorted(SPACES)), st.integers(0, 2**32), st.sampled_from([0.0, 1.5, -1.0]))
def test_slopes_are_what_moving_one_unit_changes(name: str, seed: int, saturation: float) -> None:
    space = SPACES[name][0]()
    landscape = Landscape(space, 32, seed, **CALM | {"saturation": saturation})
    fidelity = at(2, 7, seed=seed % 2)
    for profile in random_profiles(space, 3, seed):
        found = slopes_of(landscape, profile, fidelity)
        expected = by_moving(landscape, profile, fidelity)
        assert found.first.keys() == expected.keys()
        for unit, row in expected.items():
            assert found.first[unit] == pytest.approx(
                {label: change for label, (_, change) in row.items()}, rel=1e-9, abs=1e-12
            )
            assert found.second[unit] == dict.fromkeys(row, 0.0)


def test_joint_spaces_drop_and_restore_branches_with_their_units() -> None:
    """The profiles above would prove nothing if none had a dropped branch."""
    space = joint_space()
    base = space.parse({unit.name: "drop" if unit.droppable else "w2" for unit in space.units})
    landscape = Landscape(space, 32, 0, **CALM)
    found = slopes_of(landscape, base, at(0, 4))
    assert {unit: set(row) for unit, row in found.first.items()} == {
        unit.name: {"keep"} if unit.droppable else set() for unit in space.units
    }
    other = tuple(level if unit.droppable else 2 for level, unit in zip(base, space.units, strict=True))
    assert slopes_of(landscape, other, at(0, 4)) != found


@pytest.mark.parametrize("name", SPACES)
def test_around_the_dense_model_all_is_second_order(name: str) -> None:
    space = SPACES[name][0]()
    landscape = Landscape(space, 32, 3, **CALM)
    dearest = tuple(int(np.argmin(row)) for row in landscape.errors)
    found = slopes_of(landscape, DENSE, at(0, 4))
    for u, (unit, changes) in enumerate(found.second.items()):
        assert changes.keys() == set(space.units[u].index) - {"keep"}
        for label, change in changes.items():
            moved = (*dearest[:u], space.units[u].index[label], *dearest[u + 1 :])
            (alone,) = answers(landscape, [moved], at(0, 4))
            assert change == pytest.approx(alone.fitness, rel=1e-9, abs=1e-12)
        assert found.first[unit] == dict.fromkeys(changes, 0.0)


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_the_same_question_has_the_same_answer_in_any_company(seed: int) -> None:
    space = joint_space()
    profiles = random_profiles(space, 6, seed)
    asked = [Trial(n, p, at(0, 4), slopes=n % 2 == 0) for n, p in enumerate([*profiles, profiles[1]])]
    landscape = Landscape(space, 32, seed, **ROUGH)
    together = {e.trial: e for e in LocalPool(landscape).run(asked)}
    assert together.keys() == set(asked)
    again = Landscape(space, 32, seed, **ROUGH)
    for trial in reversed(asked):
        (alone,) = again.evaluate([trial])
        assert alone == together[trial]
        assert (alone.slopes is not None) == trial.slopes


def test_more_sequences_measure_better() -> None:
    space = layered_space(70)
    (profile,) = random_profiles(space, 1)
    exact = slopes_of(Landscape(space, 2000, 1), profile, at(0, 1)).first

    def errors(count: int, **settings: float) -> npt.NDArray[np.float64]:
        found = slopes_of(Landscape(space, 2000, 1, **settings), profile, at(0, count)).first
        return np.array(
            [found[unit][label] / change - 1 for unit, row in exact.items() for label, change in row.items()]
        )

    for count in (1, 16, 256):
        errors_L = errors(count, noise=0.3)
        assert np.std(errors_L) == pytest.approx(0.3 / math.sqrt(count), rel=0.2)
        assert abs(np.mean(errors_L)) < 4 * 0.3 / math.sqrt(count * len(errors_L))
    assert np.std(errors(1, spread=0.5)) > 3 * np.std(errors(64, spread=0.5)) > 0
    both = errors(4, noise=0.3), errors(4, noise=0.1)
    np.testing.assert_allclose(both[0], 3 * both[1], atol=1e-9)


def test_ten_thousand_units_take_less_than_a_second() -> None:
    space = layered_space(10_000)
    landscape = Landscape(space, 64, 0, **ROUGH)
    (profile,) = random_profiles(space, 1)
    began = time.thread_time()
    found = slopes_of(landscape, profile, at(0, 16))
    assert time.thread_time() - began < 1
    assert sum(map(len, found.first.values())) == 40_000


def test_slopes_take_simulated_workers_as_long_as_their_passes() -> None:
    space = bits_space()
    landscape = Landscape(space, 32, 0, **ROUGH)
    (profile,) = random_profiles(space, 1)
    pool = SimulatedPool(landscape, 2, seconds=0.5)
    trials = [Trial(0, profile, at(0, 3), slopes=True), Trial(1, profile, at(0, 3))]
    value, slopes = pool.run(trials)
    assert (value.seconds, slopes.seconds) == (1.5, 1.5 * passes(space))
    assert slopes.slopes == slopes_of(landscape, profile, at(0, 3))
    assert pool.busy == 1.5 * (1 + passes(space))
