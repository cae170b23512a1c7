"""The simulated cluster: a clock that adds up, failures that follow the trials."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.speed.overhead import layered_space
from paretopress.evaluators.trial import Trial
from paretopress.workers import Landscape, LocalPool, SimulatedPool
from tests.toys import bits_space
from tests.workers.simulation.simulations import ROUGH, at, number, random_profiles


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(1, 16), min_size=1, max_size=30), st.integers(0, 100))
def test_the_clock_is_that_of_workers_who_take_the_next_trial_when_free(
    workers: int, sizes: list[int], seed: int
) -> None:
    space = bits_space()
    profiles = random_profiles(space, len(sizes))
    trials = [Trial(n, p, at(0, size)) for n, (p, size) in enumerate(zip(profiles, sizes, strict=True))]
    pool = SimulatedPool(Landscape(space, 32), workers, seconds=0.5, spread=0.4, seed=seed)
    finishes, found = [], []
    for evaluation in pool.run(trials):
        finishes.append(pool.elapsed)
        found.append(evaluation)
        size = evaluation.trial.fidelity.sequences
        assert 0.3 * size <= evaluation.seconds <= 0.7 * size
    assert sorted(e.trial.number for e in found) == list(range(len(trials)))
    assert finishes == sorted(finishes)
    seconds = [e.seconds for e in sorted(found, key=number)]
    free = [0.0] * workers
    for each in seconds:
        first = free.index(min(free))
        free[first] += each
    assert pool.elapsed == pytest.approx(max(free))
    assert pool.busy == pytest.approx(math.fsum(seconds))
    assert pool.idle == pytest.approx(workers * pool.elapsed - pool.busy)
    assert pool.busy_share == pytest.approx(pool.busy / workers / max(free))


def test_the_clock_goes_on_and_all_wait_between_runs() -> None:
    space = bits_space()
    pool = SimulatedPool(Landscape(space, 32), 4, seconds=2.0)
    assert (pool.elapsed, pool.busy_share) == (0.0, 0.0)
    for _ in range(3):
        list(pool.run([Trial(n, p, at(0, 1)) for n, p in enumerate(random_profiles(space, 5))]))
    assert (pool.elapsed, pool.busy, pool.idle) == (12.0, 30.0, 18.0)
    assert list(pool.run([])) == []
    assert pool.elapsed == 12.0


def test_failures_are_a_share_of_trials_whoever_runs_them() -> None:
    space = layered_space(70)
    trials = [Trial(n, p, at(0, 2)) for n, p in enumerate(random_profiles(space, 1000))]
    landscape = Landscape(space, 32, 0, **ROUGH)
    found = []
    for workers in (1, 40):
        pool = SimulatedPool(landscape, workers, spread=0.5, failures=0.1)
        found.append({e.trial.number: e for e in pool.run(trials)})
    assert found[0] == found[1]
    failed = [e for e in found[0].values() if e.error == "the simulated worker failed"]
    assert 70 < len(failed) < 130
    assert all(e.values == () and e.fitness == math.inf for e in failed)
    wanted = {e.trial.number: e.values for e in LocalPool(landscape).run(trials)}
    assert all(e.values == wanted[n] for n, e in found[0].items() if e.error is None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 0}, "0 workers cannot run trials; give at least 1"),
        ({"workers": 1, "spread": 1.5}, r"spread 1\.5 is outside 0 to 1; give a share"),
        ({"workers": 1, "failures": -1.0}, r"failures -1\.0 is outside 0 to 1; give a share"),
    ],
)
def test_impossible_pools_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimulatedPool(Landscape(bits_space(), 32), **given)
