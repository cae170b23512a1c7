"""The pool on a real Ray: answers, mishaps, and what they cost."""

import math
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from paretopress.evaluators.slopes.slope_trial import Slopes, SlopeTrial, joined_slopes
from paretopress.evaluators.trial import Evaluation, Trial
from paretopress.workers import Landscape, LocalPool
from paretopress.workers.cluster.ray_pool import RayPool
from paretopress.workers.cluster.ray_worker import Open
from paretopress.workers.configuration import RayConfig
from tests.toys import bits_space
from tests.workers.cluster.mishaps import Mishap, WithoutSlopes, cannot_open, given
from tests.workers.cluster.ray_processes import worker_processes
from tests.workers.simulation.simulations import ROUGH, at, random_profiles

pytest.importorskip("ray")


SPACE = bits_space()
LANDSCAPE = Landscape(SPACE, 32, 0, **ROUGH)
PROFILES = list(dict.fromkeys(random_profiles(SPACE, 40)))[:24]
SHORT = [Trial(n, p, at(0, 4)) for n, p in enumerate(PROFILES)]
OPENED = partial(given, LANDSCAPE)
TRIALS = [Trial(n, p, at(0, 16) if n % 3 else at(5, 7, seed=3)) for n, p in enumerate(PROFILES)]


@pytest.fixture
def make(ray_address: str) -> Iterator[Callable[..., RayPool]]:
    """Makes pools of two workers, and closes them."""
    del ray_address
    pools: list[RayPool] = []

    def made(evaluator: Open, **settings: Any) -> RayPool:
        usual = {"kind": "ray", "number": 2, "cpus": 1, "gpus": 0, "retries": 2}
        config = RayConfig.model_validate(usual | settings)
        pools.append(RayPool(evaluator, SPACE, 4, config, lambda text: None))
        return pools[-1]

    yield made
    for pool in pools:
        pool.close()


def settle(pool: RayPool, number: int) -> None:
    """Use the pool until all its workers are there."""
    began = time.monotonic()
    while pool.size < number and time.monotonic() - began < 60:
        assert by_position(list(pool.run(TRIALS))) == WANTED
    assert pool.size == number


Values = dict[tuple[int, int], tuple[float, float]]


def by_position(evaluations: list[Evaluation]) -> Values:
    """Trial and position to value and cross-entropy; each was answered once."""
    found: Values = {}
    for e in evaluations:
        positions = range(e.trial.fidelity.start, e.trial.fidelity.stop)
        for place, *pair in zip(positions, e.values, e.cross_entropy, strict=True):
            assert (e.trial.number, place) not in found
            found[e.trial.number, place] = (pair[0], pair[1])
    return found


def slopes_of(parts: list[Evaluation]) -> Slopes:
    """Of one trial that came in these parts."""
    found = joined_slopes(SLOPED, parts)
    assert found.slopes is not None
    assert found.slopes.tokens == SLOPED.fidelity.sequences
    return found.slopes.mean()


WANTED = by_position(list(LocalPool(LANDSCAPE).run(TRIALS)))
SLOPED = SlopeTrial(99, PROFILES[0], at(2, 16))
SLOPES = slopes_of(list(LocalPool(LANDSCAPE).run([SLOPED])))


@pytest.mark.parametrize("number", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_answers_do_not_depend_on_how_many_workers_there_are(
    make: Callable[..., RayPool], number: int
) -> None:
    pool = make(OPENED, number=number)
    found = list(pool.run([*TRIALS, SLOPED]))
    assert by_position([e for e in found if not isinstance(e.trial, SlopeTrial)]) == WANTED
    assert slopes_of([e for e in found if isinstance(e.trial, SlopeTrial)]) == SLOPES
    settle(pool, number)
    assert by_position(list(pool.run(TRIALS))) == WANTED
    assert pool.failures == []
    assert list(pool.run([])) == []


@pytest.mark.parametrize(
    ("kind", "failures"),
    [
        ("dies", 2),
        pytest.param("hangs", 1, marks=pytest.mark.slow),
        pytest.param("raises", 1, marks=pytest.mark.slow),
        pytest.param("goes bad", 1, marks=pytest.mark.slow),
        pytest.param("nan", 0, marks=pytest.mark.slow),
    ],
)
def test_what_failed_is_tried_again(
    make: Callable[..., RayPool], tmp_path: Path, kind: str, failures: int
) -> None:
    times = failures or 1
    pool = make(partial(Mishap, LANDSCAPE, kind, PROFILES[5], times, tmp_path), deadline=3.0)
    assert by_position(list(pool.run(TRIALS))) == WANTED
    assert len(pool.failures) == failures
    assert len(list(tmp_path.iterdir())) == times


@pytest.mark.parametrize(
    ("kind", "error"),
    [pytest.param("raises", "RuntimeError: out of luck", marks=pytest.mark.slow), ("dies", "Actor")],
)
def test_a_model_that_always_fails_takes_no_other_with_it(
    make: Callable[..., RayPool], tmp_path: Path, kind: str, error: str
) -> None:
    pool = make(partial(Mishap, LANDSCAPE, kind, PROFILES[5], 1000, tmp_path), retries=1)
    found = list(pool.run(SHORT))
    failed = {e.trial.number: e for e in found if e.error is not None}
    assert set(failed) == {5}
    assert error in str(failed[5].error)
    assert failed[5].fitness == math.inf
    assert by_position([e for e in found if e.error is None]) == by_position(
        [e for e in LocalPool(LANDSCAPE).run(SHORT) if e.trial.number != 5]
    )


def test_a_model_without_finite_values_is_tried_once_more(
    make: Callable[..., RayPool], tmp_path: Path
) -> None:
    pool = make(partial(Mishap, LANDSCAPE, "nan", PROFILES[3], 1000, tmp_path))
    found = {e.trial.number: e for e in pool.run(SHORT)}
    assert {n for n, e in found.items() if e.error} == {3}
    assert found[3].error == "the fitness is not finite"
    assert len(list(tmp_path.iterdir())) == 2


def test_bad_input_ends_the_search_at_once(make: Callable[..., RayPool], tmp_path: Path) -> None:
    pool = make(partial(Mishap, LANDSCAPE, "refuses", PROFILES[0], 1, tmp_path))
    with pytest.raises(ValueError, match="^the profile is no good$"):
        list(pool.run(TRIALS))


def test_slopes_that_cannot_be_had_end_the_search_and_change_nothing_in_it(
    make: Callable[..., RayPool],
) -> None:
    pool = make(partial(given, WithoutSlopes(SPACE, 32)), retries=1)
    with pytest.raises(
        ConnectionError, match=r"slopes failed 2 times: RuntimeError: no slopes here; give the same"
    ):
        list(pool.run([SlopeTrial(0, PROFILES[0], at(0, 8))]))


@pytest.mark.parametrize(
    ("kind", "failures"),
    [
        ("dies", 1),
        pytest.param("hangs", 1, marks=pytest.mark.slow),
        pytest.param("raises", 1, marks=pytest.mark.slow),
        pytest.param("nan", 0, marks=pytest.mark.slow),
    ],
)
def test_workers_share_slopes_and_one_that_fails_changes_nothing(
    make: Callable[..., RayPool], tmp_path: Path, kind: str, failures: int
) -> None:
    """A part that failed is tried again by itself."""
    pool = make(partial(Mishap, LANDSCAPE, kind, SLOPED.profile, 1, tmp_path), deadline=3.0)
    parts = list(pool.run([SLOPED]))
    assert sorted((e.trial.fidelity.start, e.trial.fidelity.stop) for e in parts) == [(2, 8), (8, 16)]
    assert slopes_of(parts) == SLOPES
    assert len(pool.failures) == failures
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_too_many_failures_end_the_search_with_the_first(
    make: Callable[..., RayPool], tmp_path: Path
) -> None:
    pool = make(partial(Mishap, LANDSCAPE, "raises", None, 1000, tmp_path), max_failures=3)
    with pytest.raises(
        ConnectionError, match=r"failed 4 times.*max_failures; first: RuntimeError: out of luck$"
    ):
        list(pool.run(TRIALS))


def test_a_worker_that_cannot_open_the_model_names_its_node(make: Callable[..., RayPool]) -> None:
    pool = make(partial(cannot_open, Path("/nowhere")))
    with pytest.raises(ValueError, match=f"worker on {socket.gethostname()}: no levels at /nowhere"):
        list(pool.run(TRIALS))


def test_nobody_waits_for_ever_for_a_worker(make: Callable[..., RayPool]) -> None:
    pool = make(OPENED, cpus=1000, patience=1.0)
    with pytest.raises(
        TimeoutError, match=r"no worker could start in 1 s: each asks for 0 GPUs and 1000 CPUs, free are"
    ):
        list(pool.run(TRIALS))


@pytest.mark.slow
def test_a_run_that_is_given_up_leaves_the_next_alone(make: Callable[..., RayPool], tmp_path: Path) -> None:
    pool = make(partial(Mishap, LANDSCAPE, "slow", None, 10_000, tmp_path))
    given_up = pool.run(TRIALS)
    next(given_up)
    given_up.close()
    assert by_position(list(pool.run(TRIALS))) == WANTED


def test_as_many_workers_as_the_cluster_has_room_for(make: Callable[..., RayPool]) -> None:
    pool = make(OPENED, number=None, cpus=2)
    settle(pool, 2)


@pytest.mark.slow
def test_killed_workers_change_nothing(make: Callable[..., RayPool], tmp_path: Path) -> None:
    pool = make(
        partial(Mishap, LANDSCAPE, "slow", None, 100_000, tmp_path), number=3, retries=100, max_failures=1000
    )
    settle(pool, 3)
    rng, kills = random.Random(0), 0
    while kills < 5:
        found = []
        for answer in pool.run(TRIALS):
            found.append(answer)
            if len(found) % 20 == 10 and kills < 5 and (workers := worker_processes()):
                os.kill(rng.choice(workers), signal.SIGKILL)
                kills += 1
        assert by_position(found) == WANTED
    settle(pool, 3)
    assert 1 <= len(pool.failures) <= kills
