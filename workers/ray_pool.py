"""Evaluations on a Ray cluster.

The driver keeps everything: which worker has which trials, what is tried again, when a worker is lost. Workers never
restart by themselves, so nothing waits for a node that is gone. A worker asks for its resources as long as it has
not got them; when nodes join, it starts.
"""

import math
import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import RayError, RayTaskError

from ..evaluators.trial import Evaluation, Evaluator, SlopeSums, Trial
from ..spaces.space import Space
from .configuration import RayConfig
from .ray_cluster import Share, connect, free, line, own_share, room
from .retries import Task, settle
from .splitting import Part, split

_TICK = 0.5  # seconds between looks at deadlines and at what the cluster has

Open = Callable[[Share], Evaluator]
_Answer = tuple[int, tuple[float, ...], tuple[float, ...], float, str | None, SlopeSums | None]
"""An evaluation with its trial's place among those asked, which need not travel back."""


class Worker:
    """Lives in a process of its own, on whichever node Ray has room."""

    def start(self) -> str:
        """The node's name."""
        return socket.gethostname()

    def open(self, evaluator: Open) -> None:
        """Open model and levels.

        Raises:
            ValueError: they cannot be opened here; the message begins with the node's name.
        """
        try:
            self._evaluator = evaluator(own_share())
        except (ValueError, OSError) as error:
            raise ValueError(f"worker on {socket.gethostname()}: {error}") from None

    def evaluate(self, trials: Part) -> list[_Answer]:
        """All answers."""
        places = {trial.number: place for place, trial in enumerate(trials)}
        return [
            (places[e.trial.number], e.values, e.cross_entropy, e.seconds, e.error, e.slopes)
            for e in self._evaluator.evaluate(trials)
        ]


@dataclass
class _Call:
    """A worker at work.

    Attributes:
        worker: its handle.
        step: what it does.
        task: what it evaluates.
        began: clock at the call.
    """

    worker: Any
    step: Literal["start", "open", "evaluate"]
    task: Task | None
    began: float


class RayPool:
    """Workers on a Ray cluster.

    A trial's sequences may be answered in several evaluations. What fails is tried again by whoever is free
    (`retries.py`).

    Args:
        evaluator: opens model and levels in a worker; raises ValueError where values would not be comparable.
        space: of the profiles.
        grain: sequences that are evaluated together.
        config: settings; `gpus` and `cpus` are given.
        say: told of workers that come and go.

    Raises:
        ValueError: no cluster at the address.

    Attributes:
        failures: what workers failed with, in order.
    """

    def __init__(
        self,
        evaluator: Open,
        space: Space,
        grain: int,
        config: RayConfig,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.space = space
        self.grain = grain
        self.config = config
        self.failures: list[str] = []
        self._say = say
        self._own = connect(config.address)
        self._evaluator = ray.put(evaluator)
        options = {"num_cpus": config.cpus, "num_gpus": config.gpus, "max_restarts": 0, "max_task_retries": 0}
        self._actor: Any = ray.remote(Worker).options(**options)
        self._nodes: dict[Any, str] = {}
        self._open: set[Any] = set()
        self._calls: dict[Any, _Call] = {}
        self._refused: list[Any] = []
        self._served = False
        self._waiting_since = time.monotonic()
        self._looked = -math.inf
        self._room = 0
        self._recruit()

    @property
    def size(self) -> int:
        """Workers that have opened the model."""
        return len(self._open)

    def run(self, trials: Iterable[Trial]) -> Generator[Evaluation, None, None]:
        """Yield answers that together cover every trial, as they come."""
        parts = split(trials, self.space, self.grain, max(self.size, self._wanted()))
        queue = deque(Task(part) for part in parts)
        mine = set(queue)
        self._waiting_since = time.monotonic()
        while mine:
            self._recruit()
            busy = {call.worker for call in self._calls.values()}
            for worker in [worker for worker in self._nodes if worker in self._open - busy]:
                if queue:
                    task = queue.popleft()
                    self._calls[worker.evaluate.remote(task.trials)] = _Call(
                        worker, "evaluate", task, time.monotonic()
                    )
            for task, answers in self._finished():
                if task not in mine:  # of a run that was given up
                    continue
                again, given = settle(task, answers, self.config.retries)
                queue.extend(again)
                mine = (mine - {task}) | set(again)
                yield from given

    def close(self) -> None:
        """End the workers, and a cluster of our own."""
        for worker in {*self._nodes, *self._refused, *(call.worker for call in self._calls.values())}:
            ray.kill(worker)
        self._nodes, self._calls, self._refused = {}, {}, []
        self._open.clear()
        if self._own:
            ray.shutdown()

    def _wanted(self) -> int:
        """How many workers there should be, looking at a cluster that may change; refused ones keep their room."""
        if self.config.number is None and time.monotonic() - self._looked > 10 * _TICK:
            self._looked, self._room = time.monotonic(), room(self.config)
        return max((self.config.number or self._room) - len(self._refused), 1)

    def _recruit(self) -> None:
        """Ask for the workers that are missing.

        Raises:
            TimeoutError: there has been none for too long.
        """
        starting = sum(call.step == "start" for call in self._calls.values())
        for _ in range(self._wanted() - len(self._nodes) - starting):
            worker = self._actor.remote()
            self._calls[worker.start.remote()] = _Call(worker, "start", None, time.monotonic())
        if self._nodes:
            self._waiting_since = time.monotonic()
        elif time.monotonic() - self._waiting_since > self.config.patience:
            asked = f"{self.config.gpus:g} GPUs and {self.config.cpus:g} CPUs"
            last = f"; the last failure: {self.failures[-1]}" if self.failures else ""
            raise TimeoutError(
                f"no worker could start in {self.config.patience:g} s: each asks for {asked}, free are {free()}{last}; "
                "set workers.gpus and workers.cpus, or add nodes"
            )

    def _finished(self) -> Iterator[tuple[Task, list[Evaluation] | str]]:
        """Tasks that ended by now, with their answers or the error; waits a moment for one."""
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=_TICK)
        for answer in ready:
            call = self._calls.pop(answer)
            try:
                found = ray.get(answer)
            except RayTaskError as error:
                found = self._raised(call, error.cause or error)
            except RayError as error:
                found = line(error)
                self._lose(call, found)
            else:
                self._welcome(call, found)
            if call.task is not None:
                yield call.task, found if isinstance(found, str) else _evaluations(call.task.trials, found)
        yield from self._overdue()

    def _welcome(self, call: _Call, found: Any) -> None:
        """What follows from what a worker did."""
        match call.step:
            case "start":
                self._nodes[call.worker] = found
                opening = call.worker.open.remote(self._evaluator)
                self._calls[opening] = _Call(call.worker, "open", None, time.monotonic())
            case "open":
                self._open.add(call.worker)
                self._say(f"{self.size} of {self._wanted()} workers, the last on {self._nodes[call.worker]}")
            case "evaluate":
                self._served = True

    def _raised(self, call: _Call, error: Exception) -> str:
        """What a worker that lives could not do: bad input ends the search; anything else may stay, so it is replaced.

        Once there are answers, a worker that cannot open the model is done without. It keeps its room, or the next
        would come to the same node.
        """
        if isinstance(error, ValueError) and (call.step == "evaluate" or not self._served):
            raise error
        text = line(error)
        if call.step == "open" and isinstance(error, ValueError):
            self._nodes.pop(call.worker)
            self._refused.append(call.worker)
            self._say(f"done without a worker: {text}")
        else:
            ray.kill(call.worker)
            self._lose(call, text)
        return text

    def _overdue(self) -> Iterator[tuple[Task, str]]:
        now = time.monotonic()
        for answer, call in list(self._calls.items()):
            if call.step != "start" and now - call.began > self.config.deadline:
                del self._calls[answer]
                ray.kill(call.worker)
                text = f"no answer in {self.config.deadline:g} s"
                self._lose(call, text)
                if call.task is not None:
                    yield call.task, text

    def _lose(self, call: _Call, text: str) -> None:
        """Go on without a worker.

        Raises:
            ConnectionError: too many were lost.
        """
        node = self._nodes.pop(call.worker, None)
        self._open.discard(call.worker)
        self.failures.append(text)
        if len(self.failures) > self.config.max_failures:
            raise ConnectionError(
                f"workers failed {len(self.failures)} times, more than workers.max_failures; first: {self.failures[0]}"
            )
        self._say(f"lost a worker{f' on {node}' if node else ''}: {text}; {self.size} left")


def _evaluations(trials: Part, answers: list[_Answer]) -> list[Evaluation]:
    return [Evaluation(trials[answer[0]], *answer[1:]) for answer in answers]
