"""Speed-up by several Ray workers with a real model. Each has its own GPU, or its own CPU core if there is no GPU.

    python -m benchmarks.cluster.ray_devices --folder /scratch --model DIR --workers 0 1 2 --sequences 64 \\
        --tokens 2048 16384 32768
    python -m benchmarks.cluster.ray_devices --folder /scratch --shape llama-8b --length 2048 --profiles 32 \\
        --sequences 8 --tokens 2048 16384 32768

Three kinds of work are timed. `population` is `--profiles` mutants of the uniform profile on `--sequences` sequences.
`generation` is the stages of one generation of EvoPress, one after the other. `slopes` is the slopes of every level
over `--sequences` sequences. A time runs from the request to the last answer and is the median of `--runs`, each on
sequences that no worker has seen, after a warm-up with the same work on other sequences. `0` workers is an evaluator in
this process, without Ray. The command fails unless every value is the same, bit for bit, for every number of workers.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from paretopress.evaluators.slopes.slope_trial import SlopeTrial, joined_slopes
from paretopress.evaluators.trial import Evaluation, Fidelity, Trial
from paretopress.search.run.assembly import Assembly
from paretopress.search.site.ray_site import RaySite
from paretopress.workers.configuration import RayConfig
from paretopress.workers.pool import LocalPool, WorkerPool

from ..opening import parsed, release
from ..speed.generation import Bench, Plan
from ..tables import show

Values = list[object]


@dataclass(frozen=True)
class Work:
    """The work that is timed.

    Attributes:
        assembly: model, levels, space and text of the benchmark.
        plan: stages of a generation.
        profiles: number of profiles in the population.
        sequences: number of sequences of the population and of the slopes.
    """

    assembly: Assembly
    plan: Plan
    profiles: int
    sequences: int

    @property
    def window(self) -> int:
        """Number of sequences that each kind of work has to itself in one run, in whole micro-batches.

        This is the number that the kind of work with the most sequences needs, rounded up.
        """
        grain = int(self.assembly.config.evaluation.micro_batch)
        return -(-max(self.sequences, self.plan.window(self._length)) // grain) * grain

    @property
    def _length(self) -> int:
        return self.assembly.config.data.length

    def stages(self, run: int) -> Iterator[tuple[str, list[list[Trial]]]]:
        """Yield name and stages of each kind of work, on the sequences of one run.

        Raises:
            ValueError: there are not enough calibration sequences.
        """
        start = 3 * run * self.window
        if (last := start + 3 * self.window) > (held := len(self.assembly.data["calibration"])):
            raise ValueError(
                f"sequences up to {last} are needed, there are {held}; lower --runs or --sequences"
            )
        bench = Bench(self.assembly, self.plan)
        drawn = bench.offspring(run, self.profiles)
        yield "population", [self._trials(drawn, self._fidelity(start))]
        start += self.window
        drawn = bench.offspring(run)
        kept = (len(drawn), *self.plan.survivors[:-1])
        yield (
            "generation",
            [
                self._trials(drawn[:count], self.plan.fidelity(stage, start, self._length))
                for stage, count in enumerate(kept)
            ],
        )
        start += self.window
        yield "slopes", [[SlopeTrial(0, bench.parent, self._fidelity(start))]]

    def _fidelity(self, start: int) -> Fidelity:
        return Fidelity(0, start, start + self.sequences, self._length)

    @staticmethod
    def _trials(profiles: Sequence[tuple[int, ...]], fidelity: Fidelity) -> list[Trial]:
        return [Trial(number, profile, fidelity) for number, profile in enumerate(profiles)]


def main() -> None:
    """Parse the command line, measure with every number of workers, compare the values, and print the table.

    Raises:
        SystemExit: a value differs between numbers of workers.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--profiles", type=int, default=448)
    parser.add_argument("--sequences", type=int, default=16)
    args, wanted = parsed(None, parser)
    bench = wanted.open()
    work = Work(bench.assembly, wanted.plan, args.profiles, args.sequences)
    release()
    found: dict[str, tuple[float, Values]] = {}
    rows: list[list[object]] = []
    for workers in args.workers:
        for name, (seconds, values) in measured(workers, work, wanted.runs).items():
            first, known = found.setdefault(name, (seconds, values))
            if values != known:
                raise SystemExit(f"{name}: the values of {workers} workers differ")
            rows.append([name, workers or "without Ray", seconds, first / seconds])
            print(*rows[-1], flush=True)
    show(
        f"Medians of {wanted.runs} runs; values equal bit for bit",
        ("work", "workers", "seconds", "times"),
        sorted(rows, key=lambda row: list(found).index(str(row[0]))),
    )


def measured(workers: int, work: Work, runs: int) -> dict[str, tuple[float, Values]]:
    """Run each kind of work `runs` times and once to warm up, and return its median seconds and all values."""
    times: dict[str, list[float]] = {}
    values: dict[str, Values] = {}
    with opened(workers, work.assembly) as pool:
        for run in range(runs + 1):
            for name, stages in work.stages(run):
                began = time.perf_counter()
                for stage in stages:
                    values.setdefault(name, []).extend(answers(pool, stage))
                if run:
                    times.setdefault(name, []).append(time.perf_counter() - began)
    return {name: (statistics.median(times[name]), values[name]) for name in times}


@contextmanager
def opened(workers: int, assembly: Assembly) -> Iterator[WorkerPool]:
    """Open a pool of workers that have all opened the model, or a pool in this process for 0 workers."""
    if not workers:
        pool: WorkerPool = LocalPool(assembly.evaluator())
        yield pool
        pool.close()
        release()
        return
    settings = RayConfig(kind="ray", address="local", number=workers)
    began = time.perf_counter()
    site = RaySite(assembly.config, settings, assembly.databases)
    shared = site.pool()
    first = Trial(0, Bench(assembly, Plan()).parent, Fidelity(0, 0, 1, assembly.config.data.length))
    try:
        while shared.size < workers:
            list(shared.run([first]))
        print(f"{workers} workers opened: {time.perf_counter() - began:.1f} s", flush=True)
        yield shared
    finally:
        shared.close()
        site.close()


def answers(pool: WorkerPool, trials: Sequence[Trial]) -> Iterator[object]:
    """Run trials and yield for each trial the values of all its sequences, or its slopes."""
    parts: dict[int, list[Evaluation]] = {trial.number: [] for trial in trials}
    for answer in pool.run(trials):
        parts[answer.trial.number].append(answer)
    for trial in trials:
        if isinstance(trial, SlopeTrial):
            sums = joined_slopes(trial, parts[trial.number]).slopes
            assert sums is not None
            yield sums.mean()
        else:
            ordered = sorted(parts[trial.number], key=lambda part: part.trial.fidelity.start)
            yield [value for part in ordered for value in part.values]


if __name__ == "__main__":
    main()
