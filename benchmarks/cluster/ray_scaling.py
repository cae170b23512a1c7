"""Share of the time in which Ray workers are busy, by number of workers, where a sequence takes 0.2 s +- 20 %.

    python -m benchmarks.cluster.ray_scaling --workers 4 16 64
    python -m benchmarks.cluster.ray_scaling --workers 64 256 --threads 32

Workers sleep for as long as an evaluation would take, so one machine can stand for many. Each worker is a process of
about 170 MB. With `--threads N`, N workers are threads of one process. `efficiency` is the work of all workers divided
by the number of workers times the time from the first request to the last answer; the workers are opened before.
`whole` is a population of 448 profiles on 16 sequences. `generation` is EvoPress's three stages one after the other:
128 profiles on 1 sequence, 16 on 8, 5 on 64. `driver` is the driver's own processor time per evaluation.

The second table is the cost of about 10,000 evaluations to the driver when workers answer at once: populations of 128
profiles on 16 sequences, one after the other, whose answers are thrown away.
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
"""Number of populations of 128 profiles in the second table, which makes 10,112 evaluations."""

SPACE = layered_space(112)


@dataclass(frozen=True)
class Sleeper:
    """Evaluator that sleeps for the time that an evaluation would take, and gives 0 as every value.

    Attributes:
        seconds: mean seconds that one sequence takes.
        spread: largest share by which the time of a sequence is shorter or longer.
        fingerprint: fingerprint of the evaluator, the same for all sleepers.
    """

    seconds: float
    spread: float
    fingerprint: str = "0" * 32

    def evaluate(self, trials: Iterable[Trial]) -> Iterator[Evaluation]:
        """Answer one trial after the other."""
        for trial in trials:
            spent = self.time(trial)
            time.sleep(spent)
            zeros = (0.0,) * trial.fidelity.sequences
            yield Evaluation(trial, zeros, zeros, spent)

    def time(self, trial: Trial) -> float:
        """Return the seconds that a trial takes, which depend on its number and sequences only."""
        rng = np.random.default_rng([trial.number, trial.fidelity.start])
        late = 1 + self.spread * (2 * rng.random(trial.fidelity.sequences) - 1)
        return float(self.seconds * late.sum())


class Host:
    """Ray actor with several workers in one process, each in a thread of its own."""

    def __init__(self) -> None:
        self._workers: dict[int, Worker] = {}

    def call(self, number: int, name: str, *arguments: Any) -> Any:
        """Call a method of one of the workers and return its result."""
        return getattr(self._workers.setdefault(number, Worker()), name)(*arguments)


@dataclass(frozen=True)
class Method:
    """A method of one worker of a host, which the pool calls as if the worker were an actor."""

    host: Any
    number: int
    name: str

    def remote(self, *arguments: Any) -> Any:
        """Start the call and return Ray's reference to its result."""
        return self.host.call.remote(self.number, self.name, *arguments)


@dataclass(frozen=True)
class Seat:
    """Handle of one worker of a host, which the pool uses as if the worker were an actor."""

    host: Any
    number: int

    def __getattr__(self, name: str) -> Method:
        return Method(self.host, self.number, name)


class ThreadedPool(RayPool):
    """Pool whose workers share processes, so that no worker ends before the pool is closed."""

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
    """Open a pool and wait until all its workers are ready."""
    settings = RayConfig.model_validate({"kind": "ray", "number": workers, "cpus": 1, "gpus": 0})
    kind = type("", (ThreadedPool,), {"threads": threads}) if threads > 1 else RayPool
    pool: RayPool = kind(partial(_give, sleeper), SPACE, 1, settings)
    while pool.size < workers:
        list(pool.run(population(np.random.default_rng(0), 1, 1)))
    return pool


def population(rng: np.random.Generator, profiles: int, sequences: int) -> list[Trial]:
    """Return trials of random profiles on the same sequences."""
    levels = [len(unit.levels) for unit in SPACE.units]
    drawn: list[Profile] = [tuple(rng.integers(levels).tolist()) for _ in range(profiles)]
    return [Trial(n, p, Fidelity(0, 0, sequences, 512)) for n, p in enumerate(drawn)]


def measured(pool: RayPool, stages: Iterable[tuple[int, int]]) -> list[object]:
    """Run stages one after the other and return work and time in s, efficiency, and driver's ms per evaluation."""
    rng = np.random.default_rng(0)
    began, processor, work, count = time.perf_counter(), time.process_time(), 0.0, 0
    for profiles, sequences in stages:
        work += sum(answer.seconds for answer in pool.run(population(rng, profiles, sequences)))
        count += profiles
    took = time.perf_counter() - began
    driver = 1e3 * (time.process_time() - processor) / count
    return [work, took, work / pool.size / took, driver]


def spent(pool: RayPool) -> list[object]:
    """Run `SHORT` populations and return evaluations, time and driver's own time in s, and its memory growth in MB."""
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
