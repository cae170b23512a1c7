"""Evaluations on a Ray cluster; the only file that imports Ray.

The driver keeps everything: which worker has which trials, what is tried again, when a worker is lost. Workers never
restart by themselves, so nothing waits for a node that is gone. A worker asks for its resources as long as it has
not got them; when nodes join, it starts.
"""

import logging
import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from ..evaluators.trial import Evaluation, Evaluator, Trial
from ..spaces.space import Space
from .configuration import RayConfig
from .splitting import Part, split

_PARTS = 4  # for each worker: the more, the less one waits for the slowest at a stage's end
_TICK = 0.5  # seconds between looks at deadlines and at what the cluster has

Open = Callable[[], Evaluator]


class Worker:
    """Lives in a process of its own, on whichever node Ray has room."""

    def open(self, evaluator: Open) -> str:
        """Open model and levels; the node's name.

        Raises:
            ValueError: they cannot be opened here; the message begins with the node's name.
        """
        node = socket.gethostname()
        try:
            self._evaluator = evaluator()
        except (ValueError, OSError) as error:
            raise ValueError(f"worker on {node}: {error}") from None
        return node

    def evaluate(self, trials: Part) -> list[Evaluation]:
        """All answers."""
        return list(self._evaluator.evaluate(trials))


@dataclass(eq=False)
class _Task:
    """Trials for one worker.

    Attributes:
        trials: of one fidelity.
        tries: how often a worker failed on them.
        final: whether an answer without values is taken as it is.
    """

    trials: Part
    tries: int = 0
    final: bool = False


@dataclass
class _Call:
    """A worker at work.

    Attributes:
        worker: its handle.
        task: what it evaluates; None while it opens the model.
        began: clock at the call.
    """

    worker: Any
    task: _Task | None
    began: float


class RayPool:
    """Workers on a Ray cluster.

    A trial's sequences may be answered in several evaluations. What fails is tried again by whoever is free: trials that
    failed together once more together, then each alone, until it failed `retries` times more and is answered
    with the error. A model without finite values is tried once more.

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
        self._own = _connect(config.address)
        self._evaluator = ray.put(evaluator)
        options = {"num_cpus": config.cpus, "num_gpus": config.gpus, "max_restarts": 0, "max_task_retries": 0}
        self._actor: Any = ray.remote(Worker).options(**options)
        self._nodes: dict[Any, str] = {}
        self._calls: dict[Any, _Call] = {}
        self._waiting_since = time.monotonic()
        self._looked = -math.inf
        self._room = 0
        self._refused = 0
        self._served = False
        self._recruit()

    @property
    def size(self) -> int:
        """Workers that have opened the model."""
        return len(self._nodes)

    def run(self, trials: Iterable[Trial]) -> Generator[Evaluation, None, None]:
        """Yield answers that together cover every trial, as they come."""
        parts = split(trials, self.space, self.grain, _PARTS * max(self.size, self._wanted))
        queue = deque(_Task(part) for part in parts)
        mine = set(queue)
        while mine:
            self._recruit()
            busy = {call.worker for call in self._calls.values()}
            for worker in [worker for worker in self._nodes if worker not in busy]:
                if queue:
                    self._call(worker, queue.popleft())
            for task, answers in self._finished():
                if task not in mine:  # of a run that was given up
                    continue
                again, given = self._sorted(task, answers)
                queue.extend(again)
                mine = (mine - {task}) | set(again)
                yield from given

    def close(self) -> None:
        """End the workers, and a cluster of our own."""
        for worker in [*self._nodes, *(call.worker for call in self._calls.values() if call.task is None)]:
            ray.kill(worker)
        self._nodes, self._calls = {}, {}
        if self._own:
            ray.shutdown()

    @property
    def _wanted(self) -> int:
        """How many workers there should be; none in place of one that could not open the model."""
        if self.config.number is None and time.monotonic() - self._looked > 10 * _TICK:
            self._looked, self._room = time.monotonic(), _room(self.config)
        return max((self.config.number or self._room) - self._refused, 1)

    def _recruit(self) -> None:
        """Ask for the workers that are missing.

        Raises:
            TimeoutError: there has been none for too long.
        """
        opening = sum(call.task is None for call in self._calls.values())
        for _ in range(self._wanted - len(self._nodes) - opening):
            worker = self._actor.remote()
            self._calls[worker.open.remote(self._evaluator)] = _Call(worker, None, time.monotonic())
        if self._nodes:
            self._waiting_since = time.monotonic()
        elif time.monotonic() - self._waiting_since > self.config.patience:
            asked = f"{self.config.gpus:g} GPUs and {self.config.cpus:g} CPUs"
            raise TimeoutError(
                f"no worker could start in {self.config.patience:g} s: each asks for {asked}, free are "
                f"{_free()}; set workers.gpus and workers.cpus, or add nodes"
            )

    def _call(self, worker: Any, task: _Task) -> None:
        self._calls[worker.evaluate.remote(task.trials)] = _Call(worker, task, time.monotonic())

    def _finished(self) -> Iterator[tuple[_Task, list[Evaluation] | str]]:
        """Tasks that ended by now, with their answers or the error; waits a moment for one."""
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=_TICK)
        for answer in ready:
            call = self._calls.pop(answer)
            try:
                found = ray.get(answer)
            except RayTaskError as error:
                found = self._raised(call, error.cause or error)
            except RayError as error:
                found = _line(error)
                self._lose(call, found)
            else:
                self._welcome(call, found)
            if call.task is not None:
                yield call.task, found
        yield from self._overdue()

    def _welcome(self, call: _Call, found: Any) -> None:
        """Note that a worker opened the model, or that one has answered."""
        if call.task is not None:
            self._served = True
            return
        self._nodes[call.worker] = found
        self._say(f"{self.size} of {self._wanted} workers, the last on {found}")

    def _raised(self, call: _Call, error: Exception) -> str:
        """What a worker that lives could not do: bad input ends the search, anything else counts.

        Once there are answers, a worker that cannot open the model is done without.
        """
        if isinstance(error, ValueError) and (call.task is not None or not self._served):
            raise error
        text = _line(error)
        if call.task is None:
            ray.kill(call.worker)
            self._refused += 1
            self._say(f"done without a worker: {text}")
        self._count(text)
        return text

    def _overdue(self) -> Iterator[tuple[_Task, str]]:
        now = time.monotonic()
        for answer, call in list(self._calls.items()):
            if call.task is not None and now - call.began > self.config.deadline:
                del self._calls[answer]
                ray.kill(call.worker)
                text = f"no answer in {self.config.deadline:g} s"
                self._lose(call, text)
                yield call.task, text

    def _lose(self, call: _Call, text: str) -> None:
        node = self._nodes.pop(call.worker, None)
        self._count(text)
        self._say(f"lost a worker{f' on {node}' if node else ''}: {text}; {self.size} left")

    def _count(self, text: str) -> None:
        """Note a failure.

        Raises:
            ConnectionError: there were too many.
        """
        self.failures.append(text)
        if len(self.failures) > self.config.max_failures:
            raise ConnectionError(
                f"workers failed {len(self.failures)} times, more than workers.max_failures; first: {self.failures[0]}"
            )

    def _sorted(self, task: _Task, answers: list[Evaluation] | str) -> tuple[list[_Task], list[Evaluation]]:
        """What to try again, and what to give as an answer."""
        if isinstance(answers, str):
            if len(task.trials) > 1 and task.tries:  # alone, so that one model takes no other with it
                return [replace(task, trials=[trial]) for trial in task.trials], []
            if len(task.trials) > 1 or task.tries < self.config.retries:
                return [replace(task, tries=task.tries + 1)], []
            return [], [Evaluation(trial, (), (), error=answers) for trial in task.trials]
        odd = [] if task.final else [answer.trial for answer in answers if answer.error is not None]
        again = [_Task(odd, final=True)] if odd else []
        return again, [answer for answer in answers if answer.error is None or task.final]


def _connect(address: str | None) -> bool:
    """Connect to a cluster, or start one here; whether it is our own.

    Raises:
        ValueError: there is none at the address.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        # Workers' own output is for their log files; what matters comes as errors.
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RayError) as error:
        raise ValueError(
            f"no Ray cluster at {address or os.environ.get('RAY_ADDRESS')!r}: {_line(error)}; start one with `ray start --head`"
        ) from error
    return True


def _room(config: RayConfig) -> int:
    """How many workers the whole cluster holds."""
    resources = ray.cluster_resources()
    by_kind = [
        int(resources.get(kind, 0) / each)
        for kind, each in (("GPU", config.gpus), ("CPU", config.cpus))
        if each
    ]
    return min(by_kind, default=1)


def _free() -> str:
    resources = ray.available_resources()
    return " and ".join(f"{resources.get(kind, 0):g} {kind}s" for kind in ("GPU", "CPU"))


def _line(error: BaseException) -> str:
    """The first line of an error's text, with its type."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
