"""Connection to a Ray cluster, its nodes and resources, and a worker's share of its node."""

import logging
import os
import signal
import threading
from collections.abc import Collection, Container
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from ..configuration import RayConfig


@dataclass(frozen=True)
class Share:
    """The share of its node's memory that a worker may use, because other workers run there too.

    Attributes:
        host: share of the node's main memory, from 0 to 1.
        device: share of its GPU's memory, from 0 to 1.
    """

    host: float = 1.0
    device: float = 1.0


def connect(address: str | None) -> bool:
    """Connect to a cluster, or start one on this machine.

    Args:
        address: address of the cluster; None stands for `RAY_ADDRESS`, else a cluster on this machine, else a new one.

    Returns:
        False if this process was connected already, so that the caller must not disconnect it; else True.

    Raises:
        ValueError: there is no cluster at the address.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        # The output of workers goes to Ray's log files only; failures come to this process as errors.
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, RayError) as error:
        place = address or os.environ.get("RAY_ADDRESS") or "this machine"
        raise ValueError(
            f"no Ray cluster at {place}: {' '.join(str(error).split())}; start one with `ray start --head`"
        ) from error
    finally:
        # Ray's own handler would end the command without a message on how to resume.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)
    return True


def disconnect() -> None:
    """Disconnect from the cluster; a cluster that this process started ends."""
    ray.shutdown()


def share_out(value: object) -> Any:
    """Return a reference with which every node can `fetch` the value, as long as this process keeps the reference."""
    return ray.put(value)


def fetch(reference: Any) -> Any:
    """Return the value that a reference of `share_out` stands for."""
    return ray.get(reference)


def own_share() -> Share:
    """Return this worker's share of its node.

    The share of main memory is the worker's share of the node's GPUs or of its CPUs, whichever is larger.
    """
    context = ray.get_runtime_context()
    own = context.get_assigned_resources()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    shares = [own[kind] / node["Resources"][kind] for kind in ("GPU", "CPU") if own.get(kind)]
    return Share(min(max(shares, default=1.0), 1.0), min(own.get("GPU", 1.0) or 1.0, 1.0))


def room(config: RayConfig, without: Container[str] = ()) -> int:
    """Return how many workers fit on the cluster's nodes, except the nodes with the ids in `without`."""
    wanted = [(kind, each) for kind, each in (("GPU", config.gpus), ("CPU", config.cpus)) if each]
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"] and n["NodeID"] not in without]
    if not wanted:
        return int(bool(nodes))
    return sum(min(int(node.get(kind, 0) / each) for kind, each in wanted) for node in nodes)


def alive() -> set[str]:
    """Return the ids of the cluster's nodes that are alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def options(config: RayConfig, without: Collection[str] = ()) -> dict[str, Any]:
    """Return Ray's options for starting a worker on any node except those with the ids in `without`."""
    elsewhere = {"ray.io/node-id": f"!in({','.join(sorted(without))})"}
    return {
        "num_cpus": config.cpus,
        "num_gpus": config.gpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        **({"label_selector": elsewhere} if without else {}),
    }


def nodes_at(text: str) -> set[str]:
    """Return the ids of the nodes whose address an error's text contains as `ip=ADDRESS`."""
    return {node["NodeID"] for node in ray.nodes() if f"ip={node['NodeManagerAddress']}," in text}


def missing_package(error: BaseException) -> str | None:
    """Return the line that names the missing package if that is why a worker died, else None."""
    lines = str(error).strip().splitlines()
    return next((text for text in reversed(lines) if text.startswith("ModuleNotFoundError")), None)


def no_room(config: RayConfig, last: str | None = None) -> TimeoutError:
    """Make the error for the case that no worker could start in time.

    Args:
        config: settings of the workers, with `gpus` and `cpus` set.
        last: text of the last failure of a worker, if there was one.
    """
    asked = f"{config.gpus:g} GPUs and {config.cpus:g} CPUs"
    failed = f"; the last failure: {last}" if last else ""
    return TimeoutError(
        f"no worker could start in {config.patience:g} s: each asks for {asked}, free are {free()}{failed}; "
        "set workers.gpus and workers.cpus, or add nodes"
    )


def has_gpus() -> bool:
    """Return whether any node of the cluster has a GPU."""
    return bool(ray.cluster_resources().get("GPU", 0.0))


def fewest_cores() -> int:
    """Return the smallest number of CPUs that a node of the cluster has; nodes without CPUs do not count."""
    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    return int(min((cores for cores in nodes if cores), default=1.0))


def free() -> str:
    """Describe the GPUs and CPUs of the cluster that are not in use."""
    resources = ray.available_resources()
    return " and ".join(f"{resources.get(kind, 0):g} {kind}s" for kind in ("GPU", "CPU"))


def line(error: BaseException) -> str:
    """Return the type of an error and the first line of its text."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
