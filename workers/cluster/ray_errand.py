"""A single worker on a Ray cluster that runs errands before there is a pool.

An errand is a function that runs in the worker with an object that the worker keeps from one errand to the next.
"""

import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError, RayTaskError

from ..configuration import RayConfig
from .ray_cluster import Share, line, missing_package, no_room, options
from .ray_worker import Say, Worker

_TICK = 0.5  # seconds between two calls for the worker's progress messages

Held = TypeVar("Held")
Result = TypeVar("Result")


class RayErrands(Generic[Held]):
    """Runs errands, one after the other, in a worker that starts at the first errand and is replaced if it dies.

    Args:
        make: function that makes the worker's object in the worker, given the worker's share of its node.
        config: settings of the worker, with `gpus` and `cpus` set.
    """

    def __init__(self, make: Callable[[Share], Held], config: RayConfig) -> None:
        self.config = config
        self._make = ray.put(make)
        self._actor: Any = ray.remote(Worker).options(**options(config), max_concurrency=2)
        self._worker: Any = None
        self._heard = 0

    def call(self, errand: Callable[[Held, Say], Result], say: Say = lambda text: None) -> Result:
        """Run an errand and return its result.

        Args:
            errand: function of the worker's object and of a function for progress messages.
            say: function that gets the errand's progress messages in this process.

        Raises:
            ValueError: the errand found bad input, or the worker's node lacks a Python package.
            TimeoutError: no worker could start within `patience` seconds.
            ConnectionError: workers failed on the errand more than `retries` times, or the cluster ended the worker
                before it began.
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
        raise ConnectionError(
            f"workers failed {self.config.retries + 1} times before the search: {failure}; give the same command to try again"
        )

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
                raise GetTimeoutError(f"the worker sent nothing for {self.config.deadline:g} s")
        found: Result = ray.get(answer)
        return found

    def _hire(self) -> None:
        self._worker = self._actor.remote()
        began = time.monotonic()
        started = self._worker.start.remote()
        while not ray.wait([started], timeout=_TICK)[0]:
            if time.monotonic() - began > self.config.patience:
                self.dismiss()
                raise no_room(self.config)
        try:
            ray.get(started)
        except ActorDiedError as error:
            if missing := missing_package(error):
                raise ValueError(
                    f"a worker could not start: {missing}; install the same packages on every node"
                ) from None
            if "never ran" in str(error):
                raise ConnectionError(
                    "the cluster ended a worker before it began, because the cluster could not reach this process; give "
                    "both the same RAY_AUTH_MODE and token"
                ) from None
            raise
        self._heard = 0

    def release(self) -> Any:
        """Return Ray's handle of the worker, which keeps its object; return None if there is no worker.

        The caller owns the worker from then on, and the next errand starts another one.
        """
        worker, self._worker = self._worker, None
        return worker

    def dismiss(self) -> None:
        """End the worker, if there is one, so that its resources are free; the next errand starts another worker."""
        if self._worker is not None:
            ray.kill(self._worker)
            self._worker = None
