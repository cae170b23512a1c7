"""How much of Ray workers' time is work, by how many there are, where every sequence takes 0.2 s +- 20 %.

    python -m benchmarks.cluster.ray_scaling --workers 4 16 64
    python -m benchmarks.cluster.ray_scaling --workers 64 256 --threads 32

Workers sleep for as long as an evaluation would take, so that one machine stands for many; each is a process of about
170 MB, or with `--threads` one of so many threads in a process. `efficiency` is the work of all of them over workers times
the time from the first ask to the last answer, all workers opened before. `whole` is a population of 448 profiles on 16
sequences, `generation` EvoPress's three stages after each other: 128 profiles on 1 sequence, 16 on 8, 5 on 64. `driver`
is the driver's own processor time per evaluation.

The second table is what 10,000 evaluations cost the driver that take no time: populations of 128 profiles on 16
sequences one after the other, their answers thrown away.
"""

import argparse
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import psutil
import ray

from paretopress.evaluators.trial import Evaluation, Fidelity, Trial
from paretopress.spaces.space import Profile
from paretopress.workers.cluster.ray_cluster import Share
from paretopress.workers.cluster.ray_pool import RayPool
from paretopress.workers.cluster.ray_worker import Worker
from paretopress.workers.configuration import RayConfig

from ..speed.overhead import layered_space
from ..tables import show

STAGES = {"whole": ((448, 16),), "generation": ((128, 1), (16, 8), (5, 64))}
SHORT = 79
"""Populations of 128 profiles: 10,112 evaluations."""

SPACE = layered_space(112)


@dataclass(frozen=True)
class Sleeper:
    """Answers 0 after the time that an evaluation would take.

    Attributes:
        seconds: of one sequence, on average.
        spread: a sequence takes up to this share more or less.
    """

    seconds: float
    spread: float
    fingerprint: str = "0" * 32

    def evaluate(self, trials: Iterable[Trial]) -> Iterator[Evaluation]:
        """One by one."""
        for trial in trials:
            spent = self.time(trial)
            time.sleep(spent)
            zeros = (0.0,) * trial.fidelity.sequences
            yield Evaluation(trial, zeros, zeros, spent)

    def time(self, trial: Trial) -> float:
        """Seconds that follow from the trial alone."""
        rng = np.random.default_rng([trial.number, trial.fidelity.start])
        late = 1 + self.spread * (2 * rng.random(trial.fidelity.sequences) - 1)
        return float(self.seconds * late.sum())


class Host:
    """A process of several workers, each in a thread of its own."""

    def __init__(self) -> None:
        self._workers: dict[int, Worker] = {}

    def call(self, number: int, name: str, *arguments: Any) -> Any:
        """What a method of one of them gives."""
        return getattr(self._workers.setdefault(number, Worker()), name)(*arguments)


@dataclass(frozen=True)
class Method:
    """What the pool calls, as if the worker were an actor."""

    host: Any
    number: int
    name: str

    def remote(self, *arguments: Any) -> Any:
        """A reference to its answer."""
        return self.host.call.remote(self.number, self.name, *arguments)


@dataclass(frozen=True)
class Seat:
    """One of a host's workers."""

    host: Any
    number: int

    def __getattr__(self, name: str) -> Method:
        return Method(self.host, self.number, name)


class ThreadedPool(RayPool):
    """Workers that share processes; none of them is ended before the pool is."""

    threads = 1

    def _hire(self) -> Seat:
        seats: list[Seat] = self.__dict__.setdefault("_seats", [])
        if not seats:
            host: Any = ray.remote(Host).options(num_cpus=0, max_concurrency=self.threads).remote()
            seats += [Seat(host, number) for number in range(self.threads)]
        return seats.pop()

    def _end(self, worker: Seat) -> None:
        ray.kill(worker.host)


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--threads", type=int, default=1, help="workers of each process")
    args = parser.parse_args()
    ray.init(
        "local",
        num_cpus=max(args.workers),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    rows, short = [], []
    for workers in args.workers:
        with closing(opened(workers, args.threads, Sleeper(args.seconds, 0.2))) as pool:
            rows += [[workers, name, *measured(pool, stages)] for name, stages in STAGES.items()]
        with closing(opened(workers, args.threads, Sleeper(0.0, 0.0))) as pool:
            short.append([workers, *spent(pool)])
    ray.shutdown()
    show(
        "Ray workers that sleep",
        ("workers", "population", "work, s", "took, s", "efficiency", "driver, ms"),
        rows,
    )
    show(
        "Ray workers that answer at once",
        ("workers", "evaluations", "took, s", "driver, s", "driver's memory, MB more"),
        short,
    )


def opened(workers: int, threads: int, sleeper: Sleeper) -> RayPool:
    """A pool whose workers are all there."""
    settings = RayConfig.model_validate({"kind": "ray", "number": workers, "cpus": 1, "gpus": 0})
    kind = type("", (ThreadedPool,), {"threads": threads}) if threads > 1 else RayPool
    pool: RayPool = kind(partial(_give, sleeper), SPACE, 1, settings)
    while pool.size < workers:
        list(pool.run(population(np.random.default_rng(0), 1, 1)))
    return pool


def population(rng: np.random.Generator, profiles: int, sequences: int) -> list[Trial]:
    """Random profiles on the same sequences."""
    levels = [len(unit.levels) for unit in SPACE.units]
    drawn: list[Profile] = [tuple(rng.integers(levels).tolist()) for _ in range(profiles)]
    return [Trial(n, p, Fidelity(0, 0, sequences, 512)) for n, p in enumerate(drawn)]


def measured(pool: RayPool, stages: Iterable[tuple[int, int]]) -> list[object]:
    """Work, time, efficiency and the driver's milliseconds per evaluation of populations after each other."""
    rng = np.random.default_rng(0)
    began, processor, work, count = time.perf_counter(), time.process_time(), 0.0, 0
    for profiles, sequences in stages:
        work += sum(answer.seconds for answer in pool.run(population(rng, profiles, sequences)))
        count += profiles
    took = time.perf_counter() - began
    driver = 1e3 * (time.process_time() - processor) / count
    return [work, took, work / pool.size / took, driver]


def spent(pool: RayPool) -> list[object]:
    """Evaluations, time, the driver's own time and what its memory grew by."""
    rng, process = np.random.default_rng(0), psutil.Process()
    began, processor, before = time.perf_counter(), time.process_time(), process.memory_info().rss
    for _ in range(SHORT):
        for _ in pool.run(population(rng, 128, 16)):
            pass
    took, driver = time.perf_counter() - began, time.process_time() - processor
    return [SHORT * 128, took, driver, (process.memory_info().rss - before) / 1e6]


def _give(sleeper: Sleeper, share: Share, held: None) -> Sleeper:
    del share, held
    return sleeper


if __name__ == "__main__":
    main()
