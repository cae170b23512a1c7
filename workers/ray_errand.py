"""One worker on a Ray cluster that holds something and is sent on errands with it, before there is a pool."""

import socket
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError, RayTaskError

from .configuration import RayConfig
from .ray_cluster import Share, free, line, own_share

_TICK = 0.5  # seconds between looks at what the worker tells

Held = TypeVar("Held")
Result = TypeVar("Result")
Say = Callable[[str], None]
Errand = Callable[[Held, Say], Result]


class _Messenger:
    """Lives in a process of its own; tells while it works, because its calls may overlap."""

    def __init__(self) -> None:
        self._said: list[str] = []
        self._held: Any = None

    def start(self) -> None:
        """Nothing: it answers once its process runs."""

    def go(self, make: Callable[[Share], Any], errand: Errand[Any, Any]) -> Any:
        """Run an errand with what `make` gives, which is kept for the next.

        Raises:
            ValueError: it cannot be made, or the errand found bad input; the message begins with the node's name.
        """
        try:
            self._held = self._held or make(own_share())
            return errand(self._held, self._said.append)
        except (ValueError, OSError) as error:
            raise ValueError(f"worker on {socket.gethostname()}: {error}") from None

    def told(self, after: int) -> list[str]:
        """What errands told, without the first `after` of it."""
        return self._said[after:]


class RayErrands(Generic[Held]):
    """Runs errands, one after the other, where there are a worker's resources; a worker that dies is replaced.

    Args:
        make: what the worker holds, made there.
        config: settings; `gpus` and `cpus` are given.
    """

    def __init__(self, make: Callable[[Share], Held], config: RayConfig) -> None:
        self.config = config
        self._make = ray.put(make)
        options = {"num_cpus": config.cpus, "num_gpus": config.gpus, "max_restarts": 0, "max_concurrency": 2}
        self._actor: Any = ray.remote(_Messenger).options(**options)
        self._worker: Any = None
        self._heard = 0

    def call(self, errand: Callable[[Held, Say], Result], say: Say = lambda text: None) -> Result:
        """Run one errand; `say` gets what it tells.

        Raises:
            ValueError: bad input, found there, or a package that is not.
            TimeoutError: no worker could start.
            ConnectionError: workers failed on it more often than is tried again.
        """
        for _ in range(self.config.retries + 1):
            try:
                return self._try(errand, say)
            except RayTaskError as error:
                if isinstance(error.cause, ValueError):
                    raise error.cause from None
                failure = line(error.cause or error)
            except RayError as error:
                failure = line(error)
            self.dismiss()
        raise ConnectionError(f"workers failed {self.config.retries + 1} times before the search: {failure}")

    def _try(self, errand: Callable[[Held, Say], Result], say: Say) -> Result:
        if self._worker is None:
            self._hire()
        answer = self._worker.go.remote(self._make, errand)
        ready: list[Any] = []
        latest = time.monotonic()
        while not ready:
            ready, _ = ray.wait([answer], timeout=_TICK)
            for text in ray.get(self._worker.told.remote(self._heard), timeout=self.config.deadline):
                self._heard += 1
                latest = time.monotonic()
                say(text)
            if time.monotonic() - latest > self.config.deadline:
                raise GetTimeoutError(f"nothing heard in {self.config.deadline:g} s")
        found: Result = ray.get(answer)
        return found

    def _hire(self) -> None:
        self._worker = self._actor.remote()
        began = time.monotonic()
        started = self._worker.start.remote()
        while not ray.wait([started], timeout=_TICK)[0]:
            if time.monotonic() - began > self.config.patience:
                self.dismiss()
                asked = f"{self.config.gpus:g} GPUs and {self.config.cpus:g} CPUs"
                raise TimeoutError(
                    f"no worker could start in {self.config.patience:g} s: each asks for {asked}, free are {free()}; "
                    "set workers.gpus and workers.cpus, or add nodes"
                )
        try:
            ray.get(started)
        except ActorDiedError as error:
            if "ModuleNotFoundError" in str(error):
                missing = str(error).strip().splitlines()[-1]
                raise ValueError(
                    f"a worker could not start: {missing}; install the same packages on every node"
                ) from None
            raise
        self._heard = 0

    def dismiss(self) -> None:
        """End the worker, so that others have its place; the next errand starts one anew."""
        if self._worker is not None:
            ray.kill(self._worker)
            self._worker = None
