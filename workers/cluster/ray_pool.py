"""The worker pool on a Ray cluster.

This process, the driver, decides everything: which worker gets which trials, what is tried again, and when a worker
counts as lost. Ray never restarts workers by itself, so nothing waits for a node that is gone. A worker waits for its
resources until Ray can give them; when nodes join the cluster, waiting workers start there.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import RayError, RayTaskError

from ...evaluators.trial import Evaluation, Trial
from ...spaces.space import Space
from ..configuration import RayConfig
from .ray_cluster import alive, connect, line, missing_package, no_room, nodes_at, options, room
from .ray_worker import Open, Worker, evaluations
from .retries import Task, settle
from .splitting import GPU_INSTALL, split

_TICK = 0.5  # seconds between checks of deadlines; the cluster's room is checked every ten of them


@dataclass
class _Call:
    """A call of a worker that has not returned.

    Attributes:
        worker: Ray's handle of the worker.
        step: name of the worker's method that was called.
        task: trials that the worker evaluates; None for the other steps.
        began: time of the call on the monotonic clock, in seconds.
    """

    worker: Any
    step: Literal["start", "open", "evaluate"]
    task: Task | None
    began: float


class RayPool:
    """Runs trials on workers of a Ray cluster.

    Several evaluations may answer one trial, each for a part of its sequences. Trials that a worker fails on go to the
    next free worker (`retries.py`).

    Args:
        evaluator: function that opens model and levels in a worker; it raises ValueError where values would not be
            comparable with those of other workers.
        space: space of the profiles.
        grain: number of sequences that always run together; trials are divided at multiples of it.
        config: settings of the workers, with `gpus` and `cpus` set.
        say: function that is called with a message when workers come or go.
        first: Ray's handle of a worker that exists already, or None.

    Raises:
        ValueError: there is no cluster at the address.

    Attributes:
        failures: messages of all failures of workers, in order.
    """

    def __init__(
        self,
        evaluator: Open,
        space: Space,
        grain: int,
        config: RayConfig,
        say: Callable[[str], None] = lambda text: None,
        first: Any = None,
    ) -> None:
        self.space = space
        self.grain = grain
        self.config = config
        self.failures: list[str] = []
        self._say = say
        self._own = connect(config.address)
        self._evaluator = ray.put(evaluator)
        self._nodes: dict[Any, tuple[str, str]] = {}
        self._open: set[Any] = set()
        self._idle: deque[Any] = deque()
        self._calls: dict[Any, _Call] = {}
        self._refused: dict[Any, str] = {}
        self._without: set[str] = set()
        self._untried = alive()
        self._last: str | None = None
        self._served = False
        self._waiting_since = time.monotonic()
        self._looked = self._checked = -math.inf
        self._room = 0
        if first is not None:
            self._start(first)
        self._recruit()

    @property
    def size(self) -> int:
        """Number of workers that have opened the model."""
        return len(self._open)

    def run(self, trials: Iterable[Trial]) -> Generator[Evaluation, None, None]:
        """Yield evaluations as they finish; together they answer every trial.

        Raises:
            ValueError: a worker found an input that cannot be evaluated.
            ConnectionError: workers failed too often.
            TimeoutError: there was no worker for too long.
        """
        install = GPU_INSTALL if self.config.gpus else 0
        parts = split(trials, self.space, self.grain, max(self.size, self._wanted()), install)
        queue = deque(Task(part) for part in parts)
        mine = set(queue)
        self._waiting_since = time.monotonic()
        while mine:
            self._recruit()
            self._hand_out(queue)
            finished, failure = [], None
            try:
                for ended in self._finished():
                    finished.append(ended)
            except Exception as error:
                failure = error
            else:
                # Before the answers are yielded, because the caller may take long and workers should not wait.
                self._hand_out(queue)
            for task, answers in finished:
                if task not in mine:  # a task of an earlier call whose answers were not taken to the end
                    continue
                again, given = settle(task, answers, self.config.retries)
                queue.extend(again)
                mine = (mine - {task}) | set(again)
                yield from given
            if failure is not None:
                raise failure

    def _hand_out(self, queue: deque[Task]) -> None:
        while queue and self._idle:
            worker, task = self._idle.popleft(), queue.popleft()
            answer = worker.evaluate.remote(task.trials)
            self._calls[answer] = _Call(worker, "evaluate", task, time.monotonic())

    def close(self) -> None:
        """End the workers, and disconnect from the cluster if this pool connected to it."""
        for worker in {*self._nodes, *self._refused, *(call.worker for call in self._calls.values())}:
            self._end(worker)
        self._nodes, self._calls, self._refused = {}, {}, {}
        self._open.clear()
        self._idle.clear()
        if self._own:
            ray.shutdown()

    def _wanted(self) -> int:
        """Return how many workers there should be now.

        The cluster may change, so its room is looked at again from time to time. Workers that cannot open the model
        keep their place on their node and are not counted.
        """
        if time.monotonic() - self._looked > 10 * _TICK:
            self._looked, self._room = time.monotonic(), room(self.config, self._without)
            there = alive()
            self._refused = {worker: node for worker, node in self._refused.items() if node in there}
        wanted = self._room if self.config.number is None else self.config.number
        if self._without:
            wanted = min(wanted, self._room)
        return max(wanted - len(self._refused), 1)

    def _recruit(self) -> None:
        """Ask Ray for the workers that are missing.

        Raises:
            TimeoutError: there has been no worker for longer than `patience` seconds.
        """
        if (missing := self._wanted() - len(self._nodes)) > 0:
            starting = sum(call.step == "start" for call in self._calls.values())
            for _ in range(missing - starting):
                self._start(self._hire())
        if self._nodes:
            self._waiting_since = time.monotonic()
        elif time.monotonic() - self._waiting_since > self.config.patience:
            raise no_room(self.config, self._last)

    def _hire(self) -> Any:
        return ray.remote(Worker).options(**options(self.config, self._without)).remote()

    def _start(self, worker: Any) -> None:
        self._calls[worker.start.remote()] = _Call(worker, "start", None, time.monotonic())

    def _end(self, worker: Any) -> None:
        ray.kill(worker)

    def _finished(self) -> Iterator[tuple[Task, list[Evaluation] | str]]:
        """Yield the tasks that ended, each with its evaluations or an error's text; wait a moment if there are none."""
        ready, others = ray.wait(list(self._calls), num_returns=1, timeout=_TICK)
        if ready and others:
            ready += ray.wait(others, num_returns=len(others), timeout=0)[0]
        for answer in ready:
            call = self._calls.pop(answer)
            try:
                found = ray.get(answer)
            except RayTaskError as error:
                found = self._raised(call, error.cause or error)
            except RayError as error:
                found = self._died(call, error)
            else:
                self._welcome(call, found)
            if call.task is not None:
                yield call.task, found if isinstance(found, str) else evaluations(call.task.trials, found)
        yield from self._overdue()

    def _welcome(self, call: _Call, found: Any) -> None:
        """Start the next step of a worker whose call succeeded, or note that the worker is idle."""
        match call.step:
            case "start":
                self._nodes[call.worker] = found
                opening = call.worker.open.remote(self._evaluator)
                self._calls[opening] = _Call(call.worker, "open", None, time.monotonic())
            case "open":
                self._open.add(call.worker)
                self._untried.discard(self._nodes[call.worker][1])
                self._idle.append(call.worker)
                self._say(
                    f"{self.size} of {self._wanted()} workers are ready, the last on {self._nodes[call.worker][0]}"
                )
            case "evaluate":
                self._idle.append(call.worker)
                self._served = True

    def _raised(self, call: _Call, error: Exception) -> str:
        """Handle an error that a worker raised without dying, and return its text.

        A ValueError stands for bad input and ends the search. A worker with any other error is replaced, because its
        state may be damaged. There is one exception: once there are answers, the search goes on without a worker that
        cannot open the model on a node that joined later or where the model could be opened before. That worker keeps
        its place on the node, or Ray would start the next worker there.

        Raises:
            ValueError: the worker found bad input.
            ConnectionError: too many workers failed.
        """
        _, node = self._nodes[call.worker] if call.step != "start" else ("", "")
        late = self._served and node not in self._untried
        if isinstance(error, ValueError) and not (call.step == "open" and late):
            raise error
        text = line(error)
        if call.step == "open" and isinstance(error, ValueError):
            self._refused[call.worker] = node
            del self._nodes[call.worker]
            self._last = text
            self._say(f"the search goes on without a worker that cannot open the model: {text}")
        else:
            self._end(call.worker)
            self._lose(call, text)
        return text

    def _died(self, call: _Call, error: RayError) -> str:
        """Handle the death of a worker, and return the text of its cause.

        The search goes on without a node that lacks a Python package.

        Raises:
            ValueError: a package is missing and no worker could start yet.
            ConnectionError: too many workers failed.
        """
        missing = missing_package(error)
        nodes = nodes_at(str(error)) if call.step == "start" and missing else set()
        if not nodes:
            self._lose(call, line(error))
        elif not self._nodes and not self._served:
            raise ValueError(f"a worker could not start: {missing}; install the same packages on every node")
        else:
            self._without |= nodes
            self._last, self._looked = f"{missing} on a node", -math.inf
            self._say(f"the search goes on without a node that lacks a package: {missing}")
        return missing or line(error)

    def _overdue(self) -> Iterator[tuple[Task, str]]:
        now = time.monotonic()
        if now - self._checked < _TICK:
            return
        self._checked = now
        for answer, call in list(self._calls.items()):
            if call.step != "start" and now - call.began > self.config.deadline:
                del self._calls[answer]
                self._end(call.worker)
                text = f"no answer in {self.config.deadline:g} s"
                self._lose(call, text)
                if call.task is not None:
                    yield call.task, text

    def _lose(self, call: _Call, text: str) -> None:
        """Record the failure of a worker, which does not come back.

        Args:
            call: call that the worker failed in.
            text: reason of the failure, for people.

        Raises:
            ConnectionError: more workers failed than `max_failures` allows.
        """
        node, _ = self._nodes.pop(call.worker, ("", ""))
        self._open.discard(call.worker)
        self.failures.append(text)
        self._last = text
        if len(self.failures) > self.config.max_failures:
            raise ConnectionError(
                f"workers failed {len(self.failures)} times, more than workers.max_failures; first: {self.failures[0]}"
            )
        self._say(f"lost a worker{f' on {node}' if node else ''}: {text}; {self.size} left")
