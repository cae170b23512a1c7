"""The Ray cluster that this process is connected to, and what a worker has of its node."""

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
    """What a worker may use of its node's memory, beside the others there.

    Attributes:
        host: of the main memory.
        device: of its GPU's.
    """

    host: float = 1.0
    device: float = 1.0


def connect(address: str | None) -> bool:
    """Connect to a cluster, or start one here; whether it is our own.

    Raises:
        ValueError: there is none at the address.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        # Workers' own output is for their log files; what matters comes as errors.
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, RayError) as error:
        place = address or os.environ.get("RAY_ADDRESS") or "this machine"
        raise ValueError(
            f"no Ray cluster at {place}: {' '.join(str(error).split())}; start one with `ray start --head`"
        ) from error
    finally:
        # Ray's own would end the command without a word on how to go on.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)
    return True


def disconnect() -> None:
    """Leave the cluster; one that was started here ends."""
    ray.shutdown()


def share_out(value: object) -> Any:
    """A reference that every node can `fetch` the value by, while this process keeps it."""
    return ray.put(value)


def fetch(reference: Any) -> Any:
    """The value of a reference."""
    return ray.get(reference)


def own_share() -> Share:
    """What this worker has of its node's resources, of whichever kind it has more."""
    context = ray.get_runtime_context()
    own = context.get_assigned_resources()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    shares = [own[kind] / node["Resources"][kind] for kind in ("GPU", "CPU") if own.get(kind)]
    return Share(min(max(shares, default=1.0), 1.0), min(own.get("GPU", 1.0) or 1.0, 1.0))


def room(config: RayConfig, without: Container[str] = ()) -> int:
    """How many workers the cluster's nodes hold, but for those with the ids `without`."""
    wanted = [(kind, each) for kind, each in (("GPU", config.gpus), ("CPU", config.cpus)) if each]
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"] and n["NodeID"] not in without]
    if not wanted:
        return int(bool(nodes))
    return sum(min(int(node.get(kind, 0) / each) for kind, each in wanted) for node in nodes)


def alive() -> set[str]:
    """Ids of the nodes that are there."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def options(config: RayConfig, without: Collection[str] = ()) -> dict[str, Any]:
    """What Ray is asked for to start a worker, on any node but those with the ids `without`."""
    elsewhere = {"ray.io/node-id": f"!in({','.join(sorted(without))})"}
    return {
        "num_cpus": config.cpus,
        "num_gpus": config.gpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        **({"label_selector": elsewhere} if without else {}),
    }


def nodes_at(text: str) -> set[str]:
    """Ids of the nodes whose address stands in an error's text, as `ip=ADDRESS`."""
    return {node["NodeID"] for node in ray.nodes() if f"ip={node['NodeManagerAddress']}," in text}


def missing_package(error: BaseException) -> str | None:
    """The last line of an actor's death for want of a package; None for any other."""
    lines = str(error).strip().splitlines()
    return next((text for text in reversed(lines) if text.startswith("ModuleNotFoundError")), None)


def no_room(config: RayConfig, last: str | None = None) -> TimeoutError:
    """What to say when no worker could start in time; `last` is the last failure."""
    asked = f"{config.gpus:g} GPUs and {config.cpus:g} CPUs"
    failed = f"; the last failure: {last}" if last else ""
    return TimeoutError(
        f"no worker could start in {config.patience:g} s: each asks for {asked}, free are {free()}{failed}; "
        "set workers.gpus and workers.cpus, or add nodes"
    )


def has_gpus() -> bool:
    """Whether any node of the cluster has a GPU."""
    return bool(ray.cluster_resources().get("GPU", 0.0))


def fewest_cores() -> int:
    """CPUs of the smallest node that has any."""
    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    return int(min((cores for cores in nodes if cores), default=1.0))


def free() -> str:
    """What nobody has asked for yet."""
    resources = ray.available_resources()
    return " and ".join(f"{resources.get(kind, 0):g} {kind}s" for kind in ("GPU", "CPU"))


def line(error: BaseException) -> str:
    """The first line of an error's text, with its type."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
