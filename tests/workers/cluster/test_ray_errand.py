"""Errands on a real Ray: what is held, told, tried again and refused."""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from paretopress.workers.cluster.ray_cluster import Share
from paretopress.workers.cluster.ray_errand import RayErrands
from paretopress.workers.configuration import RayConfig

pytest.importorskip("ray")
pytestmark = pytest.mark.usefixtures("ray_address")

Say = Callable[[str], None]


def errands(make: Callable[[Share], Any], **settings: Any) -> RayErrands[Any]:
    usual = {"kind": "ray", "cpus": 4, "gpus": 0, "retries": 2}
    return RayErrands(make, RayConfig.model_validate(usual | settings))


def visit(folder: Path, share: Share) -> list[int]:
    """What a worker holds: how often it was made."""
    assert share.host == 1
    (folder / str(len(list(folder.iterdir())))).touch()
    return [len(list(folder.iterdir()))]


def times(held: list[int], say: Say) -> int:
    say(f"made {held[0]} times")
    return held[0]


def count(to: int, held: list[int], say: Say) -> int:
    for n in range(to):
        say(str(n))
    return os.getpid()


def die_first(held: list[int], say: Say) -> int:
    if held[0] < 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return times(held, say)


def die(held: list[int], say: Say) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(held: list[int], say: Say) -> None:
    raise ValueError("the model is no good")


def test_errands_share_what_is_held_and_tell_in_order(tmp_path: Path) -> None:
    told: list[str] = []
    worker = errands(partial(visit, tmp_path))
    first = worker.call(partial(count, 200), told.append)
    assert worker.call(partial(count, 3), told.append) == first != os.getpid()
    assert told == [*map(str, range(200)), "0", "1", "2"]
    assert worker.call(times, told.append) == 1
    worker.dismiss()
    assert worker.call(times, told.append) == 2
    assert told[-2:] == ["made 1 times", "made 2 times"]
    worker.dismiss()


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    worker = errands(partial(visit, tmp_path))
    assert worker.call(die_first) == 2
    with pytest.raises(ConnectionError, match=r"^workers failed 3 times before the search: ActorDiedError: "):
        worker.call(die)
    worker.dismiss()


def test_bad_input_is_told_with_the_node_and_not_tried_again(tmp_path: Path) -> None:
    worker = errands(partial(visit, tmp_path))
    with pytest.raises(ValueError, match=r"^worker on .*: the model is no good$"):
        worker.call(refuse)
    assert worker.call(times) == 1
    worker.dismiss()


def test_resources_that_nobody_has_are_not_waited_for_for_ever(tmp_path: Path) -> None:
    worker = errands(partial(visit, tmp_path), cpus=1000, patience=0.5)
    with pytest.raises(
        TimeoutError,
        match=r"no worker could start in 0\.5 s: each asks for 0 GPUs and 1000 CPUs, free are 0 GPUs",
    ):
        worker.call(times)
