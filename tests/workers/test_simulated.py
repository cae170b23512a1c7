"""The simulator: answers that depend on nothing but the question, a clock that adds up, searches at scale."""

import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.evaluators.journal import Journal
from paretopress.evaluators.trial import Evaluation, Fidelity, Trial
from paretopress.search.allocation import allocate, allocate_limits
from paretopress.search.archive import ParetoArchive
from paretopress.search.dp import DPConfig
from paretopress.search.evolution import EvolutionConfig
from paretopress.search.methods import MethodConfig, legs
from paretopress.search.series import SeriesSearcher
from paretopress.search.study import Study
from paretopress.spaces.space import Limits, Profile, Space
from paretopress.workers import Landscape, LocalPool, Replay, SimulatedPool, WorkerPool
from tests.benchmarks.overhead import layered_space
from tests.toys import (
    LENGTH,
    POOL,
    SPACES,
    bits_limits,
    bits_space,
    drop_space,
    everything,
    joint_space,
    ladder_space,
)

DATA = {"calibration": "1" * 32}
ROUGH = {"interaction": 0.6, "saturation": 1.5, "spread": 0.5, "noise": 0.1}
"""Every trait at once."""
CONSTRAINED = [name for name in SPACES if name != "one level"]


def at(start: int, stop: int, seed: int = 0, data: str = "calibration") -> Fidelity:
    return Fidelity(seed, start, stop, LENGTH, data)


def random_profiles(space: Space, count: int, seed: int = 0) -> list[Profile]:
    rng = np.random.default_rng(seed)
    counts = [len(unit.levels) for unit in space.units]
    return [tuple(rng.integers(counts).tolist()) for _ in range(count)]


def answers(landscape: Landscape, profiles: Sequence[Profile], fidelity: Fidelity) -> list[Evaluation]:
    return list(landscape.evaluate([Trial(n, p, fidelity) for n, p in enumerate(profiles)]))


def number(evaluation: Evaluation) -> int:
    return evaluation.trial.number


def best_of_all(landscape: Landscape, limits: Limits) -> float:
    """The lowest expected value within the limits, by looking at every profile."""
    space = landscape.space
    return min(landscape.expected([p for p in everything(space) if space.fits(p, limits)]))


def study(
    folder: Path, space: Space, limits: Limits, pool: WorkerPool, methods: Sequence[MethodConfig]
) -> Study:
    fidelity = POOL.archive
    return Study(
        SeriesSearcher(legs(methods, space, [limits], POOL, 1, {}), fidelity),
        pool,
        ParetoArchive(space, space.kinds[0], fidelity),
        Journal(folder / "journal.jsonl", "0" * 32),
        space=space,
        data=DATA,
        budgets={"b": limits},
    )


def state(study: Study) -> dict[str, Any]:
    """All that a study knows, but the time it took."""
    found: dict[str, Any] = json.loads(json.dumps(study.state_dict()))
    found["progress"].pop("seconds")
    return found


EVOLUTION = EvolutionConfig(
    generations=8, offspring=12, survivors=(4, 1), tokens=(2 * LENGTH, 8 * LENGTH), groups="none"
)


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
    with pytest.raises(
        ValueError, match=rf"{key} {value} is outside 0 to 0\.\d; values would not stay positive"
    ):
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


# The pool


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
        ({"workers": 0}, "0 workers do nothing; give at least 1"),
        ({"workers": 1, "spread": 1.5}, r"spread 1\.5 is no share; give 0 to 1"),
        ({"workers": 1, "failures": -1.0}, r"failures -1\.0 is no share; give 0 to 1"),
    ],
)
def test_impossible_pools_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimulatedPool(Landscape(bits_space(), 32), **given)


# Searches


@pytest.mark.parametrize("name", CONSTRAINED)
def test_dp_finds_the_optimum_where_effects_add_up(name: str, tmp_path: Path) -> None:
    make, limits_of = SPACES[name]
    space = make()
    limits = limits_of(space)
    landscape = Landscape(space, POOL.sequences, 4)
    found = study(tmp_path, space, limits, SimulatedPool(landscape, 8), [DPConfig()])
    found.run()
    best = found.archive.best(limits)
    assert best is not None
    assert best.fitness == pytest.approx(best_of_all(landscape, limits))


def test_evolution_approaches_the_optimum(tmp_path: Path) -> None:
    space = bits_space()
    limits = bits_limits(space)
    landscape = Landscape(space, POOL.sequences, 4, interaction=0.5)
    longer = EVOLUTION.model_copy(update={"generations": 16})
    found = study(tmp_path, space, limits, SimulatedPool(landscape, 8), [longer])
    found.run()
    best = found.archive.best(limits)
    assert best is not None
    (uniform,) = landscape.expected([space.uniform(limits)])
    optimum = best_of_all(landscape, limits)
    assert optimum <= best.fitness + 1e-12
    assert best.fitness - optimum < 0.1 * (uniform - optimum)


def test_the_result_is_the_same_on_any_number_of_workers(tmp_path: Path) -> None:
    space = bits_space(3)
    limits = bits_limits(space)
    landscape = Landscape(space, POOL.sequences, 1, **ROUGH)
    found, elapsed = [], []
    for workers in (1, 5, 1000):
        folder = tmp_path / str(workers)
        folder.mkdir()
        pool = SimulatedPool(landscape, workers, spread=0.3, failures=0.05)
        made = study(folder, space, limits, pool, [DPConfig(tokens=2 * LENGTH), EVOLUTION])
        made.run()
        found.append(state(made))
        elapsed.append(pool.elapsed)
    assert found[0] == found[1] == found[2]
    assert elapsed[0] > elapsed[1] > elapsed[2]


@pytest.mark.parametrize("failures", [0.0, 0.1])
def test_a_study_goes_on_to_the_same_result(failures: float, tmp_path: Path) -> None:
    space = joint_space(3)
    limits = SPACES["joint"][1](space)
    landscape = Landscape(space, POOL.sequences, 1, **ROUGH)

    def begin(folder: Path) -> Study:
        folder.mkdir(exist_ok=True)
        pool = SimulatedPool(landscape, 7, spread=0.3, failures=failures)
        return study(folder, space, limits, pool, [DPConfig(tokens=2 * LENGTH), EVOLUTION])

    whole = begin(tmp_path / "whole")
    whole.run()
    for stop in (1, 4, 9):
        folder = tmp_path / str(stop)
        first = begin(folder)
        for _ in range(stop):
            assert first.step()
        saved = json.loads(json.dumps(first.state_dict()))
        # Some answers of the next step came before the process died.
        taken = itertools.islice(first.pool.run(first.searcher.ask()), 5)
        for evaluation in taken:
            first.journal.append(first.key(evaluation.trial.profile, "calibration"), evaluation)
        second = begin(folder)
        assert second.resume(saved)
        second.run()
        assert state(second) == state(whole)


def test_a_replay_repeats_a_recorded_search(tmp_path: Path) -> None:
    space = bits_space()
    limits = bits_limits(space)
    landscape = Landscape(space, POOL.sequences, 1, **ROUGH)
    (tmp_path / "first").mkdir()
    recorded = study(tmp_path / "first", space, limits, LocalPool(landscape), [EVOLUTION])
    recorded.run()
    replay = Replay(Journal(tmp_path / "first" / "journal.jsonl", "0" * 32), space, DATA)
    assert replay.fingerprint == "0" * 32
    again = study(tmp_path, space, limits, SimulatedPool(replay, 100), [EVOLUTION])
    again.run()
    assert state(again) == state(recorded)


def test_a_replay_says_what_was_not_recorded(tmp_path: Path) -> None:
    space = bits_space()
    (profile,) = random_profiles(space, 1)
    recorded = study(tmp_path, space, bits_limits(space), LocalPool(Landscape(space, 32)), [EVOLUTION])
    (evaluation,) = recorded.pool.run([Trial(0, profile, at(2, 6))])
    recorded.journal.append(recorded.key(profile, "calibration"), evaluation)
    replay = Replay(Journal(tmp_path / "journal.jsonl", "0" * 32), space, DATA)
    (found,) = replay.evaluate([Trial(3, profile, at(3, 5))])
    assert found.values == evaluation.values[1:3]
    count = space.labels(profile).count("w2")
    message = rf"no values of trial 9 \({count} x w2, .*\) on calibration sequences 0\.\.2, 6\.\.8 \(seed 0, length 64\)"
    with pytest.raises(LookupError, match=message):
        list(replay.evaluate([Trial(9, profile, at(0, 8))]))


def test_ten_thousand_units_and_a_thousand_workers_take_seconds() -> None:
    """A hundred budgets' profiles: from all units at 2 bits to all at 6, unit after unit."""
    space = layered_space(10_000)
    landscape = Landscape(space, 64, 0, **ROUGH)
    raises = np.linspace(0, 4 * 10_000, 100).astype(int)
    profiles = [tuple(((done + 9_999 - np.arange(10_000)) // 10_000).tolist()) for done in raises]
    pool = SimulatedPool(landscape, 1000, spread=0.2)
    began = time.thread_time()
    found = sorted(pool.run([Trial(n, p, at(0, 8)) for n, p in enumerate(profiles)]), key=number)
    assert time.thread_time() - began < 10
    assert pool.elapsed == max(e.seconds for e in found)
    fitness = [e.fitness for e in found]
    assert fitness[-1] == 0
    assert fitness[0] > 5 * fitness[50] > 0
