"""What was used last is kept while there is room."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.evaluators.runner.recent import RecentTensors

ACTIONS = st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=60)


def tensor(key: int) -> torch.Tensor:
    """Of `key` + 1 elements."""
    return torch.arange(key + 1, dtype=torch.float16) + key


@settings(deadline=None)
@given(ACTIONS, st.integers(0, 50))
def test_the_least_recently_used_are_forgotten(actions: list[tuple[bool, int]], limit: int) -> None:
    recent = RecentTensors(limit)
    expected: list[int] = []  # keys, the last used last
    for is_put, key in actions:
        if is_put:
            recent.put(key, tensor(key))
            if key not in expected and tensor(key).nbytes <= limit:
                expected.append(key)
            while sum(tensor(k).nbytes for k in expected) > limit:
                expected.pop(0)
        else:
            found = recent.get(key)
            assert (found is not None) == (key in expected)
            if found is not None:
                assert torch.equal(found, tensor(key))
                expected.remove(key)
                expected.append(key)
        assert recent.bytes == sum(tensor(k).nbytes for k in expected) <= limit


def test_what_is_kept_is_a_copy() -> None:
    recent = RecentTensors(1000)
    states = torch.ones(2, 3, 4)
    recent.put("states", states.transpose(0, 2))
    states.zero_()
    found = recent.get("states")
    assert found is not None
    assert torch.equal(found, torch.ones(4, 3, 2))
    assert found.is_contiguous()


def test_what_is_beyond_the_limit_forgets_nothing_else() -> None:
    recent = RecentTensors(8)
    recent.put("small", torch.ones(2))
    recent.put("large", torch.ones(3))
    assert recent.get("large") is None
    assert recent.get("small") is not None
