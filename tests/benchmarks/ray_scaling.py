"""How much of Ray workers' time is work, by how many there are, where every sequence takes 0.2 s +- 20 %.

    python -m tests.benchmarks.ray_scaling --workers 4 16 64

Workers sleep for as long as an evaluation would take, so that one machine stands for many; each is a process of about
170 MB. `efficiency` is the work of all of them over workers times the time from the first ask to the last answer, all
workers opened before. `whole` is a population of 448 profiles on 16 sequences, `generation` EvoPress's three
stages after each other: 128 profiles on 1 sequence, 16 on 8, 5 on 64. `driver` is the driver's own processor time per
evaluation.
"""

import argparse
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import ray

from paretopress.evaluators.trial import Evaluation, Fidelity, Trial
from paretopress.spaces.space import Profile
from paretopress.workers.configuration import RayConfig
from paretopress.workers.ray_cluster import Share
from paretopress.workers.ray_pool import RayPool

from .overhead import layered_space
from .tables import show

STAGES = {"whole": ((448, 16),), "generation": ((128, 1), (16, 8), (5, 64))}


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


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--seconds", type=float, default=0.2)
    args = parser.parse_args()
    ray.init(
        num_cpus=max(args.workers), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    rows = [row for workers in args.workers for row in measure(workers, Sleeper(args.seconds, 0.2))]
    ray.shutdown()
    headings = ("workers", "population", "work, s", "took, s", "efficiency", "driver, ms")
    show("Ray workers that sleep", headings, rows)


def measure(workers: int, sleeper: Sleeper) -> list[list[object]]:
    """A row for each population."""
    space = layered_space(112)
    settings = RayConfig.model_validate({"kind": "ray", "number": workers, "cpus": 1, "gpus": 0})
    pool = RayPool(lambda share: _opened(sleeper, share), space, 1, settings)
    rng = np.random.default_rng(0)
    levels = [len(unit.levels) for unit in space.units]
    first: Profile = tuple(rng.integers(levels).tolist())
    while pool.size < workers:
        list(pool.run([Trial(0, first, Fidelity(0, 0, 1, 512))]))
    rows: list[list[object]] = []
    for name, stages in STAGES.items():
        began, processor, work, count = time.perf_counter(), time.process_time(), 0.0, 0
        for profiles, sequences in stages:
            drawn = [tuple(rng.integers(levels).tolist()) for _ in range(profiles)]
            trials = [Trial(n, p, Fidelity(0, 0, sequences, 512)) for n, p in enumerate(drawn)]
            work += sum(answer.seconds for answer in pool.run(trials))
            count += profiles
        took = time.perf_counter() - began
        spent = 1e3 * (time.process_time() - processor) / count
        rows.append([workers, name, work, took, work / workers / took, spent])
    pool.close()
    return rows


def _opened(sleeper: Sleeper, share: Share) -> Sleeper:
    del share
    return sleeper


if __name__ == "__main__":
    main()
