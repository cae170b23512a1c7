"""Slopes of the formula: the changes that its own values make."""

import math
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.speed.overhead import layered_space
from paretopress.evaluators.slopes.slope_trial import (
    SlopeEvaluation,
    Slopes,
    SlopeSums,
    SlopeTrial,
    joined_slopes,
    passes,
)
from paretopress.evaluators.trial import Evaluation, Fidelity, Trial
from paretopress.evaluators.trial_kinds import KINDS
from paretopress.search.frontier.frontier import FrontierConfig
from paretopress.spaces.space import DENSE, Profile
from paretopress.workers import Landscape, LocalPool, SimulatedPool
from paretopress.workers.cluster.splitting import split
from paretopress.workers.pool import WorkerPool
from tests.toys import CALIBRATION, LENGTH, SPACES, bits_space, joint_limits, joint_space
from tests.workers.simulation.simulations import ROUGH, answers, at, random_profiles, state, study

CALM = {name: value for name, value in ROUGH.items() if name != "noise"}


def slopes_of(landscape: Landscape, profile: Profile, fidelity: Fidelity) -> Slopes:
    (found,) = landscape.evaluate([SlopeTrial(0, profile, fidelity)])
    assert found.error is None
    assert (found.values, found.fitness) == ((), math.inf)
    return mean_of(found)


def mean_of(evaluation: Evaluation) -> Slopes:
    assert isinstance(evaluation, SlopeEvaluation)
    assert evaluation.slopes is not None
    return evaluation.slopes.mean()


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
    asked = [KINDS[n % 2 == 0](n, p, at(0, 4)) for n, p in enumerate([*profiles, profiles[1]])]
    landscape = Landscape(space, 32, seed, **ROUGH)
    together = {e.trial: e for e in LocalPool(landscape).run(asked)}
    assert together.keys() == set(asked)
    again = Landscape(space, 32, seed, **ROUGH)
    for trial in reversed(asked):
        (alone,) = again.evaluate([trial])
        both = alone, together[trial]
        assert both[0].values == both[1].values
        assert isinstance(alone, SlopeEvaluation) == isinstance(trial, SlopeTrial)
        if isinstance(trial, SlopeTrial):
            assert mean_of(both[0]) == mean_of(both[1])


@settings(max_examples=30)
@given(st.sampled_from(sorted(SPACES)), st.integers(0, 2**32), st.sets(st.integers(3, 11)), st.randoms())
def test_parts_in_any_order_are_the_whole(name: str, seed: int, cuts: set[int], order: random.Random) -> None:
    space = SPACES[name][0]()
    landscape = Landscape(space, 32, seed, **ROUGH)
    for profile in (DENSE, *random_profiles(space, 1, seed)):
        whole = SlopeTrial(0, profile, at(2, 12, seed=seed % 2))
        edges = pairwise([2, *sorted(cuts), 12])
        asked = [replace(whole, fidelity=replace(whole.fidelity, start=a, stop=b)) for a, b in edges]
        order.shuffle(asked)
        joined = joined_slopes(whole, LocalPool(landscape).run(asked))
        assert mean_of(joined) == slopes_of(landscape, profile, whole.fidelity)


SUMS = st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(-1e-9, 1e-9)), min_size=1, max_size=12)


@given(SUMS, st.integers(1, 1000), st.data())
def test_means_are_the_exact_ones_rounded_however_sums_are_divided(
    sums: list[tuple[float, float]], tokens: int, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(sums) - 1))
    pieces = [each for each in (sums[:cut], sums[cut:]) if each]
    parts = [SlopeSums({"a": ("w2",), "b": ()}, np.array([piece]), tokens) for piece in pieces]
    found = SlopeSums.joined(parts[:: data.draw(st.sampled_from([1, -1]))]).mean()
    first, second = (float(sum(map(Fraction, column))) for column in zip(*sums, strict=True))
    assert found.first == {"a": {"w2": first / (tokens * len(pieces))}, "b": {}}
    assert found.second == {"a": {"w2": second / (tokens * len(pieces))}, "b": {}}


def test_a_part_without_finite_slopes_makes_the_whole_one_without() -> None:
    good = SlopeSums({"a": ("w2",)}, np.ones((1, 2, 2)), 8)
    assert good.finite
    assert not SlopeSums({"a": ("w2",)}, np.array([[[1.0, math.nan]]]), 8).finite
    asked = [SlopeTrial(0, (0,), at(start, start + 2)) for start in (0, 2, 4)]
    parts = [
        SlopeEvaluation(asked[0], (), (), 1.0, slopes=good),
        SlopeEvaluation(asked[2], (), (), 2.0, "a slope is not finite"),
        Evaluation(asked[1], (), (), 4.0, "no luck"),  # as whoever lost a worker answers
    ]
    whole = SlopeTrial(0, (0,), at(0, 6))
    assert joined_slopes(whole, parts) == SlopeEvaluation(whole, (), (), 7.0, "no luck")


@dataclass
class Divided:
    """A pool that answers in parts as for so many workers, the last part first."""

    landscape: Landscape
    workers: int

    def run(self, trials: Iterable[Trial]) -> Iterator[Evaluation]:
        for part in reversed(split(trials, self.landscape.space, 1, self.workers)):
            yield from self.landscape.evaluate(part)

    def close(self) -> None:
        """Nothing to release."""


def test_a_search_by_slopes_is_the_same_however_they_are_divided(tmp_path: Path) -> None:
    space = joint_space(3)
    landscape = Landscape(space, CALIBRATION.sequences, 1, **ROUGH)
    config = FrontierConfig(rounds=2, tokens=3 * LENGTH, around=4 * LENGTH, check=2 * LENGTH, offspring=4)
    pools: dict[str, WorkerPool] = {
        "whole": LocalPool(landscape),
        "3": Divided(landscape, 3),
        "9": Divided(landscape, 9),
    }
    found = []
    for name, pool in pools.items():
        (tmp_path / name).mkdir()
        made = study(tmp_path / name, space, joint_limits(space), pool, [config])
        made.run()
        assert made.progress.slope_tokens > 0
        found.append(state(made))
    assert found[0] == found[1] == found[2]


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
    trials = [SlopeTrial(0, profile, at(0, 3)), Trial(1, profile, at(0, 3))]
    value, slopes = pool.run(trials)
    assert (value.seconds, slopes.seconds) == (1.5, 1.5 * passes(space))
    assert mean_of(slopes) == slopes_of(landscape, profile, at(0, 3))
    assert pool.busy == 1.5 * (1 + passes(space))
