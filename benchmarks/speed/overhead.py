"""Cost of a search without its evaluations: microseconds per evaluation and peak memory of every method.

    python -m benchmarks.speed.overhead
    python -m benchmarks.speed.overhead --units 112 --methods evolution dp --seconds 20

The first table is of allocation only. `front s` are the seconds for the front of all budgets, `profiles s` those for
the profiles at 100 budgets. The gap of a profile is an upper bound of how much smaller the error of another profile
within the same budget can be; it is 0 where the front is `proved`. `gap %` is the median gap as a share of the
profile's error, `largest %` the largest gap as a share of the range of errors over the front. Costs are the exact bits
of seven layers of three sizes per block, or `uneven`, where no two costs are alike.

In the second table every row is a study of one method at its default settings on a simulated landscape. The study
begins no step after `--seconds` or `--evaluations`, and is given up after `--limit` seconds. An evaluation is one
profile at a fidelity at which it was not known. These columns are microseconds of processor time per evaluation:

| column | work |
| --- | --- |
| ask, tell | the searcher's own |
| journal | finding the values that are known, and appending new ones |
| archive | adding evaluations and finding the best |
| other | everything else in the driver, such as keys and counting |
| driver | the sum of the columns before |
| checkpoint | storing the state as often as a run does |
| pool | the simulation, which is no part of the driver |

The cost of the measurement itself is measured and left out. `open s` is the time to make the searcher, and `memory` the
growth of the process.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from paretopress.evaluators.journal.journal import Journal
from paretopress.evaluators.trial import Evaluation, Fidelity, Trial
from paretopress.search.allocation.allocation import allocate
from paretopress.search.asking.calibration_sequences import CalibrationSequences
from paretopress.search.asking.series import SeriesSearcher
from paretopress.search.folder.runfolder import RunFolder
from paretopress.search.jobs.job import Checkpoints
from paretopress.search.jobs.legs import legs
from paretopress.search.run.method_registry import METHODS
from paretopress.search.study.answers import Answers
from paretopress.search.study.archive import ParetoArchive
from paretopress.search.study.study import Study
from paretopress.spaces.space import Space
from paretopress.spaces.unit import Level, Unit
from paretopress.workers import Landscape, SimulatedPool, WorkerPool

from ..tables import show

UNITS = (112, 1_000, 10_000)
ALLOCATED = (224, 1_000, 10_000)
FIGURES = ("costs", "units", "front s", "profiles s", "points", "proved", "gap %", "largest %")
PARTS = ("ask", "tell", "journal", "archive", "other")
COLUMNS = ("method", "units", "evaluations", "open s", *PARTS, "driver", "checkpoint", "pool", "memory MB")
_SIZES = (16, 4, 4, 16, 48, 48, 48)
"""Weights of the linear layers of a block, in units of 2**20: q, k, v, o, gate, up, down."""
_BITS = (2, 3, 4, 5, 6)


def layered_space(units: int) -> Space:
    """Return a space of blocks of seven linear layers, each at 2 to 6 bits in groups of 128 with 16-bit scales."""
    found = []
    for u in range(units):
        block, place = divmod(u, len(_SIZES))
        weights = _SIZES[place] * 2**20
        levels = tuple(
            Level(
                f"w{bits}g128",
                {"bits": bits * weights + weights // 8},
                tuple(n for n in (i - 1, i + 1) if 0 <= n < len(_BITS)),
            )
            for i, bits in enumerate(_BITS)
        )
        name = f"blocks.{block}.{place}"
        found.append(Unit(name, (name,), block, "attention" if place < 4 else "mlp", levels))
    return Space(tuple(found), weights=sum(_SIZES[u % len(_SIZES)] * 2**20 for u in range(units)))


def uneven(space: Space) -> Space:
    """Return the space with every cost changed by up to a tenth, so that no two sums are equal, as with latencies."""
    rng = np.random.default_rng(0)
    return replace(
        space,
        units=tuple(
            replace(
                unit,
                levels=tuple(
                    replace(level, costs={"bits": int(level.costs["bits"] * rng.uniform(0.9, 1.1))})
                    for level in unit.levels
                ),
            )
            for unit in space.units
        ),
    )


def allocation(costs: str, units: int, budgets: int = 100) -> dict[str, Any]:
    """Allocate for all budgets at once with the errors of a landscape, and return a row of the table.

    Args:
        costs: kind of costs, `bits` or `uneven`.
        units: number of units of the space.
        budgets: number of budgets whose profiles are made.
    """
    space = layered_space(units) if costs == "bits" else uneven(layered_space(units))
    errors = Landscape(space, 1).errors
    limits = [limit["bits"] for limit in limits_of(space, budgets).values()]
    began = time.perf_counter()
    front = allocate(space, errors, "bits")
    fronted = time.perf_counter()
    profiles = [front.best(limit) for limit in limits]
    ended = time.perf_counter()
    if any(space.cost(profile, "bits") > limit for profile, limit in zip(profiles, limits, strict=True)):
        raise RuntimeError(f"a profile of {units} units exceeds its budget")
    gaps = np.array([front.gap(limit) for limit in limits])
    parts = gaps / (gaps + [front.bound(limit) for limit in limits])
    figures = (
        *(fronted - began, ended - fronted, len(front), "yes" if front.exact else "no"),
        *(100 * float(np.median(parts)), 100 * float(gaps.max()) / float(np.ptp(front.errors))),
    )
    return dict(zip(FIGURES, (costs, units, *figures), strict=True))


@dataclass
class Clock:
    """Counter of calls and their processor seconds by name; a call inside another counts only with the outer one.

    Attributes:
        seconds: processor seconds of all calls by name, with a part of the cost of counting.
        calls: number of calls that were counted, by name.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    _inside: bool = False

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same as `call` and counts its time under a name."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return call(*args, **kwargs)
            self._inside = True
            self.calls[name] += 1
            began = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                self._inside = False
                self.seconds[name] = self.seconds.get(name, 0.0) + time.thread_time() - began

        return wrapped

    def watch(self, thing: object, name: str, *methods: str) -> None:
        """Count the calls of the given methods of one object under a name."""
        for method in methods:
            setattr(thing, method, self.timed(name, getattr(thing, method)))


def counting() -> tuple[float, float]:
    """Measure the cost of counting one call: the seconds that are counted under its name, and those that are not."""
    clock, calls = Clock(), 20_000
    empty = clock.timed("", lambda: None)
    began = time.thread_time()
    for _ in range(calls):
        empty()
    total = time.thread_time() - began
    return clock.seconds[""] / calls, (total - clock.seconds[""]) / calls


class WatchedPool:
    """Pool that counts the time of another pool, without the time of the code that takes its answers."""

    def __init__(self, pool: WorkerPool, clock: Clock) -> None:
        self.pool = pool
        self.clock = clock

    def run(self, trials: Iterable[Trial]) -> Iterator[Evaluation]:
        """Yield the answers of the other pool, and count the time of waiting for each of them."""
        take = self.clock.timed("pool", next)
        answers = self.pool.run(trials)
        while (answer := take(answers, None)) is not None:
            yield answer

    def close(self) -> None:
        """Close the other pool."""
        self.pool.close()


@dataclass(frozen=True)
class Job:
    """Settings of one row of the table.

    Attributes:
        method: name of the search method.
        units: number of units of the space.
        budgets: number of budgets, evenly between the cheapest and the most expensive profile.
        evaluations: number of evaluations after which no step begins.
        seconds: time after which no step begins.
    """

    method: str
    units: int
    budgets: int
    evaluations: int
    seconds: float


def measure(job: Job) -> dict[str, Any]:
    """Run the study of one row and return the cells of the row by column."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock = Clock()
    with tempfile.TemporaryDirectory() as name, RunFolder(Path(name)) as folder:
        began = time.thread_time()
        study = _study(job, folder, clock)
        opening = time.thread_time() - began
        checkpoints = Checkpoints(folder)
        began, begun = time.thread_time(), time.perf_counter()
        while study.progress.evaluations < job.evaluations and time.perf_counter() - begun < job.seconds:
            if not study.step():
                break
            clock.timed("checkpoint", checkpoints.after_step)(study)
        total = time.thread_time() - began
        study.answers.journal.close()
    return _figures(job, study, clock, opening, total, before)


def _study(job: Job, folder: RunFolder, clock: Clock) -> Study:
    space = layered_space(job.units)
    archive = Fidelity(0, 0, 8, 2048)
    limits = limits_of(space, job.budgets)
    landscape = Landscape(space, 64, interaction=0.3, saturation=1.0, spread=0.5, noise=0.02)
    pool = CalibrationSequences(sequences=64, length=2048, archive=archive)
    searches = legs([METHODS[job.method]()], space, list(limits.values()), pool, 0, {})
    study = Study(
        SeriesSearcher(searches, archive),
        Answers(
            WatchedPool(SimulatedPool(landscape, 8), clock),
            Journal(folder.journal, landscape.fingerprint),
            space=space,
            data={"calibration": "1" * 32},
        ),
        ParetoArchive(space, "bits", archive),
        budgets=limits,
    )
    clock.watch(study.searcher, "ask", "ask")
    clock.watch(study.searcher, "tell", "tell")
    clock.watch(study.answers.journal, "journal", "append", "missing", "lookup")
    clock.watch(study.archive, "archive", "add", "best")
    return study


def limits_of(space: Space, count: int) -> dict[str, dict[str, int]]:
    """Return `count` budgets by name, evenly between the cheapest and the most expensive profile of a space."""
    low, high = (space.cost(space.extreme("bits", largest=largest), "bits") for largest in (False, True))
    costs = [low + (high - low) * (n + 1) // (count + 1) for n in range(count)]
    return {f"bits {cost / space.weights:.3g}": {"bits": cost} for cost in costs}


def _figures(
    job: Job, study: Study, clock: Clock, opening: float, total: float, before: int
) -> dict[str, Any]:
    within, around = counting()
    spent = {
        name: clock.seconds.get(name, 0.0) - clock.calls[name] * within
        for name in ("pool", "checkpoint", *PARTS)
    }
    spent["other"] = total - sum(spent.values()) - clock.calls.total() * (within + around)
    count = max(study.progress.evaluations, 1)
    each = {name: spent[name] / count * 1e6 for name in (*PARTS, "checkpoint")}
    return {
        "method": job.method,
        "units": job.units,
        "evaluations": study.progress.evaluations,
        "open s": opening,
        **{name: each[name] for name in PARTS},
        "driver": sum(each[name] for name in PARTS),
        "checkpoint": each["checkpoint"],
        "pool": spent["pool"] / count * 1e6,
        "memory MB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def measured(job: Job, limit: float) -> dict[str, Any]:
    """Call `measure` in a process of its own, whose memory is measured; a row that takes too long has no figures."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, job))
    process.start()
    sender.close()
    try:
        found: dict[str, Any] = receiver.recv() if receiver.poll(limit) else {}
    finally:
        process.kill()
        process.join()
    return {column: found.get(column) for column in COLUMNS} | {"method": job.method, "units": job.units}


def _send(sender: Connection, job: Job) -> None:
    sender.send(measure(job))


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, print the table of allocation, a line as each study ends, and the table of studies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", type=int, nargs="+", default=list(UNITS))
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=list(METHODS))
    parser.add_argument("--allocate", type=int, nargs="*", default=list(ALLOCATED), help="units of each row")
    parser.add_argument("--budgets", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=5_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--limit", type=float, default=120.0)
    args = parser.parse_args(arguments)
    if args.allocate:
        allocated = [allocation(costs, units) for costs in ("bits", "uneven") for units in args.allocate]
        show("Allocation for all budgets", FIGURES, [list(row.values()) for row in allocated])
    jobs = [
        Job(method, units, args.budgets, args.evaluations, args.seconds)
        for units in args.units
        for method in args.methods
    ]
    rows = []
    for job in jobs:
        rows.append(measured(job, args.limit))
        print(f"{job.method} {job.units}: {rows[-1]['driver']} us", flush=True)
    show("Microseconds per evaluation", COLUMNS, [list(row.values()) for row in rows])


if __name__ == "__main__":
    main()
