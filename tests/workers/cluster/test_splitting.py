"""How work is divided among workers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.evaluators.slopes.slope_trial import SlopeTrial, passes
from paretopress.evaluators.trial import Fidelity, Trial
from paretopress.spaces.space import DENSE
from paretopress.workers.cluster.splitting import PARTS, split, work
from tests.toys import bits_space
from tests.workers.simulation.simulations import at, random_profiles

SPACE = bits_space()
RANGES = st.tuples(st.integers(0, 40), st.integers(1, 40), st.integers(0, 2), st.integers(1, 6))


def trials_of(ranges: list[tuple[int, int, int, int]], slopes: bool) -> list[Trial]:
    found: list[Trial] = []
    for start, sequences, seed, profiles in ranges:
        for profile in random_profiles(SPACE, profiles, seed=len(found)):
            found.append(Trial(len(found), profile, at(start, start + sequences, seed)))
    if slopes:
        found += [SlopeTrial(len(found), found[0].profile, at(0, 8))]
    return found


@settings(max_examples=200, deadline=None)
@given(
    st.lists(RANGES, min_size=1, max_size=4),
    st.integers(1, 8),
    st.integers(1, 10),
    st.booleans(),
    st.sampled_from([0.0, 1e3, 1e9]),
)
def test_parts_are_all_of_the_work_once(
    ranges: list[tuple[int, int, int, int]], grain: int, workers: int, slopes: bool, install: float
) -> None:
    trials = trials_of(ranges, slopes)
    trials += [Trial(len(trials), DENSE, trials[0].fidelity)]
    parts = split(trials, SPACE, grain, workers, install)
    found = [
        (trial.number, position)
        for part in parts
        for trial in part
        for position in range(trial.fidelity.start, trial.fidelity.stop)
    ]
    assert sorted(found) == sorted(
        (trial.number, position)
        for trial in trials
        for position in range(trial.fidelity.start, trial.fidelity.stop)
    )
    edges = {trial.number: {trial.fidelity.start, trial.fidelity.stop} for trial in trials}
    for part in parts:
        assert len({(trial.fidelity, isinstance(trial, SlopeTrial)) for trial in part}) == 1
        for trial in part:
            for edge in (trial.fidelity.start, trial.fidelity.stop):
                assert edge % grain == 0 or edge in edges[trial.number]
    assert all(len(part) == 1 for part in parts if isinstance(part[0], SlopeTrial))
    assert [work(part, SPACE) for part in parts] == sorted((work(p, SPACE) for p in parts), reverse=True)


def test_sequences_are_divided_before_profiles() -> None:
    trials = [Trial(n, p, at(0, 16)) for n, p in enumerate(random_profiles(SPACE, 12))]
    for grain in (1, 2, 4):
        parts = split(trials, SPACE, grain, 4 // grain)
        assert [len(part) for part in parts] == [12] * (PARTS * 4 // grain)
    parts = split(trials, SPACE, 4, 12 // PARTS)
    assert [(len(part), part[0].fidelity.sequences) for part in parts] == [(4, 4)] * 12
    together = [trial.profile for part in parts if part[0].fidelity.start == 0 for trial in part]
    assert together == sorted(trial.profile for trial in trials)


def test_profiles_are_divided_where_installing_blocks_takes_longer_than_running_them() -> None:
    trials = [Trial(n, p, at(0, 16)) for n, p in enumerate(random_profiles(SPACE, 12))]
    parts = split(trials, SPACE, 1, 1, install=1e9)
    assert [part[0].fidelity.sequences for part in parts] == [16] * PARTS
    assert {len(part) for part in parts} <= {2, 3, 4}
    assert [p.profile for part in sorted(parts, key=lambda p: p[0].profile) for p in part] == sorted(
        trial.profile for trial in trials
    )


def test_profiles_that_share_all_but_one_unit_stay_together_where_installing_takes_little() -> None:
    parent = random_profiles(SPACE, 1)[0]
    trials = [Trial(n, (*parent[:-1], n), at(0, 16)) for n in range(2)]
    install = 1e-4 * trials[0].fidelity.tokens * SPACE.weights
    parts = split(trials, SPACE, 1, 2, install)
    assert [(len(part), part[0].fidelity.sequences) for part in parts] == [(2, 16 // 2 // PARTS)] * 2 * PARTS


def test_profiles_of_one_parent_are_not_cut_finely_where_installing_takes_long() -> None:
    parent = random_profiles(SPACE, 1)[0]
    trials = [Trial(n, (*parent[:-1], n), at(0, 16)) for n in range(4)]
    assert len(split(trials, SPACE, 1, 2, install=1e9)) <= 2
    assert len(split(trials, SPACE, 1, 2)) == 2 * PARTS


def test_slopes_count_with_all_their_passes() -> None:
    (profile,) = random_profiles(SPACE, 1)
    fidelity = Fidelity(0, 0, 4, 8)
    assert work([Trial(0, profile, fidelity)], SPACE) == 32
    assert work([SlopeTrial(0, profile, fidelity)], SPACE) == 32 * passes(SPACE)


@pytest.mark.parametrize("workers", [1, 2, 3, 8, 100])
def test_slopes_are_one_part_for_each_worker(workers: int) -> None:
    (profile,) = random_profiles(SPACE, 1)
    parts = split([SlopeTrial(7, profile, at(3, 33))], SPACE, 4, workers)
    assert len(parts) == min(workers, 9)
    assert {(len(part), part[0].number, isinstance(part[0], SlopeTrial)) for part in parts} == {(1, 7, True)}
    sizes = [part[0].fidelity.sequences for part in parts]
    assert max(sizes) - min(sizes) < 8


def test_no_work_is_no_part() -> None:
    assert split([], SPACE, 4, 8) == []
