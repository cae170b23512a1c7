"""What neighbouring profiles share, against counting it one by one."""

from itertools import groupby, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.spaces.space import DENSE, Profile
from paretopress.workers.cluster.sharing import Population, edges
from tests.toys import bits_space
from tests.workers.simulation.simulations import random_profiles

SPACE = bits_space()
BLOCKS = [
    [u for u, _ in units] for _, units in groupby(enumerate(SPACE.units), key=lambda item: item[1].block)
]


def levels(profile: Profile, block: list[int]) -> tuple[int | None, ...]:
    return tuple(profile[u] if profile else None for u in block)


def counted(group: list[Profile]) -> tuple[int, int]:
    """Blocks to run, one for each distinct beginning, and blocks' levels to put in place."""
    ran = {
        tuple(levels(profile, block) for block in BLOCKS[: b + 1])
        for profile in group
        for b in range(len(BLOCKS))
    }
    return len(ran), sum(len({levels(profile, block) for profile in group}) for block in BLOCKS)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(0, 5),
    st.booleans(),
    st.integers(1, 8),
    st.integers(1, 8),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.5, 100.0]),
)
def test_work_is_what_counting_gives(
    count: int, seed: int, dense: bool, wanted: int, runs: int, teachers: int, install: float
) -> None:
    profiles = sorted({*random_profiles(SPACE, count, seed=seed), *([DENSE] if dense else [])})
    population = Population.of(profiles, SPACE, install)
    cut = population.edges(wanted, runs)
    assert (cut[0], cut[-1]) == (0, len(profiles))
    assert len(cut) - 1 <= wanted
    ran = installed = teachers * len(BLOCKS)
    for first, last in pairwise(cut):
        blocks, put = counted(profiles[first:last])
        ran, installed = ran + blocks, installed + put
    assert population.work(cut, runs, teachers) == pytest.approx(ran + runs * install * installed)


def test_edges_divide_sizes_evenly() -> None:
    assert edges(np.ones(8), 4) == [0, 2, 4, 6, 8]
    assert edges(np.array([7.0, 1, 1, 1, 1, 1, 1, 1]), 2) == [0, 1, 8]
    assert edges(np.ones(2), 5) == [0, 1, 2]
