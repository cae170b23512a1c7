"""The pool on nodes that join with something missing."""

import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from paretopress.workers.cluster.ray_cluster import Share, options, room
from paretopress.workers.cluster.ray_errand import RayErrands
from paretopress.workers.cluster.ray_pool import RayPool
from paretopress.workers.configuration import RayConfig
from tests.workers.cluster.lacking import Demanding
from tests.workers.cluster.test_ray_pool import LANDSCAPE, SPACE, TRIALS, WANTED, by_position

pytestmark = pytest.mark.slow

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

CONFIG = RayConfig.model_validate({"kind": "ray", "cpus": 1, "gpus": 0, "max_failures": 0, "patience": 60})


@pytest.fixture
def cluster() -> Iterator[Any]:
    """One node for one worker; further ones can be added."""
    ray.shutdown()  # what other tests of this process left
    made = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    ray.init(made.address, log_to_driver=False, logging_level=logging.ERROR)
    yield made
    ray.shutdown()
    made.shutdown()


class DemandingPool(RayPool):
    """Of workers that not every node can start."""

    def _hire(self) -> Any:
        return ray.remote(Demanding).options(**options(self.config, self._without)).remote()


def picky(share: Share, held: str | None) -> Any:
    if "OTHER" in os.environ:
        raise ValueError("other libraries here")
    return LANDSCAPE


def hold(share: Share) -> str:
    return "model"


def process(held: str, say: object) -> int:
    return os.getpid()


def test_nodes_that_join_with_something_missing_are_done_without(cluster: Any) -> None:
    told: list[str] = []
    pool = DemandingPool(picky, SPACE, 4, CONFIG, told.append)
    assert by_position(list(pool.run(TRIALS))) == WANTED

    def until(text: str) -> None:
        began = time.monotonic()
        while not any(text in said for said in told) and time.monotonic() - began < 60:
            assert by_position(list(pool.run(TRIALS))) == WANTED
        assert any(text in said for said in told), told

    # Other addresses, as other machines have; all are this one.
    cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2", env_vars={"LACKING": "1"})
    until(
        "the search goes on without a node that lacks a package: ModuleNotFoundError: No module named 'optuna'"
    )
    odd = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.3", env_vars={"OTHER": "1"})
    until("the search goes on without a worker that cannot open the model: ValueError: worker on")
    assert room(CONFIG) == 3
    cluster.remove_node(odd)
    cluster.add_node(num_cpus=1, node_ip_address="127.0.0.4")
    until("2 of 2 workers")
    assert pool.failures == []
    pool.close()


def test_the_first_worker_may_be_one_that_went_on_errands(cluster: Any) -> None:
    errands = RayErrands(hold, CONFIG)
    before = errands.call(process)
    pool = RayPool(_alive(before), SPACE, 4, CONFIG, first=errands.release())
    assert by_position(list(pool.run(TRIALS))) == WANTED
    assert pool.size == 1
    errands.dismiss()
    assert by_position(list(pool.run(TRIALS))) == WANTED
    pool.close()


def test_a_node_that_was_there_from_the_start_and_is_no_good_ends_the_search(cluster: Any) -> None:
    """Also when others have answered before it could open the model."""
    errands = RayErrands(hold, CONFIG)
    errands.call(process)
    cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2", env_vars={"OTHER": "1"})
    pool = RayPool(picky, SPACE, 4, CONFIG, first=errands.release())
    assert by_position(list(pool.run(TRIALS))) == WANTED
    with pytest.raises(ValueError, match="worker on .*: other libraries here"):
        run_for(60.0, pool)
    pool.close()


def run_for(seconds: float, pool: RayPool) -> None:
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        list(pool.run(TRIALS))


def _alive(process_id: int) -> Any:
    def opened(share: Share, held: str | None) -> Any:
        assert (os.getpid(), held) == (process_id, "model")
        return LANDSCAPE

    return opened
