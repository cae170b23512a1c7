"""Comparison of search methods by held-out divergence, at equal tokens and with EvoPress's own schedule.

    python -m benchmarks.methods.methods --model DIR --budget bits=3.25 --tokens 12000000 --long 47200000
    python -m benchmarks.methods.methods --model DIR --budget sparsity=0.6 --tokens 12000000 --long 35400000
    python -m benchmarks.methods.methods --model DIR --budget bits=3.25 --config configs/benchmarks/asymmetric.yaml
    python -m benchmarks.methods.methods --model configs/quickstart-model --budget bits=3.25 --tokens 2400000 \\
        --set archive_tokens=16384 --set data.validation.tokens=65536
    python -m benchmarks.methods.methods --model DIR --budget bits=3.25 --only frontier --full --seeds 0 1 2 \\
        --tokens 500000 1000000 5000000 --devices cuda:0 cuda:1
    python -m benchmarks.methods.methods --model DIR --budget bits=2.5,2.75,3,3.25 --only frontier --full

All methods use the same levels and text. Every row is a run through the public path (`RunConfig` and
`search.jobs.job.run` with `stop.max_tokens`) in a folder of its own. `--full` adds runs of EvoPress's evolution that
last as long as its own schedule says, one for each rule for its groups. With several budgets, a method that serves all
of them runs once, and any other method once per budget. Finished runs in the output folder are not repeated, and
interrupted runs are resumed. `--beside` adds the results of calls with other settings to the tables.

`gain` is the share by which the held-out divergence is below that of uniform. `search tokens` are the tokens that
guided the search: the sum over profiles of the tokens that each was measured on, for all budgets of the run together
and without a discount for shared prefixes. The teacher's tokens are included; those of validation have a column of
their own. `winner` names the method that
proposed the profile which the run's final test chose; `uniform` there means that the method found nothing significantly
better. `seconds` is the time of the search; with `--parallel` above 1 several methods share a device. The tables are
written to `results.md` and `results.json` in the output folder.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from paretopress.search.jobs.job import run
from paretopress.search.run.assembly import Assembly, assemble
from paretopress.search.run.configuration import RunConfig, load_config

from .plans import LONG, TOGETHER, Room, Search, full_runs, plans
from .rows import Row, by_budget, each_baseline_once, rows_of, table

CONFIGS = Path(__file__).parents[2] / "configs" / "benchmarks"


@dataclass(frozen=True)
class Job:
    """One run of a method, which gives a row per budget.

    Attributes:
        method: name of the method in the tables.
        seed: seed of the search.
        tokens: number of tokens that the search may spend, or None for no limit.
        search: settings of the search.
        budgets: indices of the configuration's budgets.
    """

    method: str
    seed: int
    tokens: int | None
    search: Search
    budgets: tuple[int, ...]

    def folder(self, config: RunConfig) -> str:
        """Return the name of the run's folder."""
        parts = [self.method.replace(", ", "-").replace(" ", "-"), f"seed{self.seed}"]
        if self.tokens:
            parts.append(str(self.tokens))
        if len(self.budgets) == 1:
            parts.append(config.budgets[self.budgets[0]].name.replace(" ", "-"))
        return "-".join(parts)


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="default: configs/benchmarks/bits.yaml or sparsity.yaml")
    parser.add_argument("--model", required=True)
    parser.add_argument("--budget", required=True, help="for example sparsity=0.6 or bits=3,3.25")
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[12_000_000], help="that every search may spend"
    )
    parser.add_argument("--long", type=int, help="tokens of one more evolution, as a reference")
    parser.add_argument("--full", action="store_true", help="EvoPress's own schedule to its end as well")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", help="names of methods")
    parser.add_argument("--without", nargs="+", default=[], help="names of methods")
    parser.add_argument("--devices", nargs="+", default=["auto"], help="that methods are spread over")
    parser.add_argument("--parallel", type=int, default=1, help="methods that run side by side on each")
    parser.add_argument(
        "--beside",
        type=Path,
        nargs="+",
        default=[],
        help="results.json of other calls, shown in the tables too",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    args = parser.parse_args()
    kind, _, values = args.budget.partition("=")
    path = args.config or CONFIGS / f"{'sparsity' if kind == 'sparsity' else 'bits'}.yaml"
    budgets = [{kind: float(value)} for value in values.split(",")]
    overrides = [f"model={args.model}", f"budgets={json.dumps(budgets)}", *args.overrides]
    print(compare(load_config(path, overrides), args))


def compare(config: RunConfig, args: argparse.Namespace) -> str:
    """Build the levels, run every method, and return the tables, which are also written after every finished run."""
    args.output.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    assembly = assemble(config, args.output / "databases")
    print(f"opened in {time.perf_counter() - began:.1f} s", flush=True)
    began = time.perf_counter()
    assembly.build(lambda part: None)
    notes = [f"levels: {assembly.database.bytes:,} bytes in {time.perf_counter() - began:.1f} s"]
    print(notes[0], flush=True)
    sizes = {name: found.tokens.size for name, found in assembly.data.items()}
    notes.append("text: " + ", ".join(f"{name} {size:,} tokens" for name, size in sizes.items()))
    jobs, skipped = _jobs(assembly, args)
    notes += [f"{name}: not within {tokens:,} tokens" for name, tokens in skipped]
    del assembly
    text = ""
    beside = [row for path in args.beside for row in json.loads(path.read_text())["rows"]]
    for found in _finished(config, jobs, args):
        rows = each_baseline_once([*beside, *found])
        text = "\n".join([table(rows), "", *by_budget(rows), *notes])
        (args.output / "results.md").write_text(text + "\n")
        (args.output / "results.json").write_text(json.dumps({"rows": rows, "notes": notes}, indent=1) + "\n")
    return text


def _jobs(assembly: Assembly, args: argparse.Namespace) -> tuple[list[Job], list[tuple[str, int]]]:
    """Return all runs to do, and name and tokens of the methods that do not fit into the tokens."""
    jobs, skipped = [], []
    budgets = range(len(assembly.limits))
    for tokens in args.tokens:
        for budget in budgets:
            limits, archive = assembly.limits[budget][1], assembly.archive_fidelity.tokens
            room = Room(assembly.space, limits, tokens, archive, assembly.config.data.length)
            for name, search in plans(room).items():
                if (args.only and name not in args.only) or name in args.without:
                    continue
                if search is None:
                    skipped.append((name, tokens))
                elif search[0]["method"] not in TOGETHER or len(search) > 1:
                    jobs += [Job(name, seed, tokens, search, (budget,)) for seed in args.seeds]
                elif not budget:
                    jobs += [Job(name, seed, tokens, search, tuple(budgets)) for seed in args.seeds]
    for budget in budgets:
        if args.long:
            jobs.append(Job(LONG, args.seeds[0], args.long, [{"method": "evolution"}], (budget,)))
        if args.full:
            full = {
                name: plan for name, plan in full_runs(assembly.space).items() if name not in args.without
            }
            jobs += [
                Job(name, seed, None, plan, (budget,)) for name, plan in full.items() for seed in args.seeds
            ]
    return jobs, skipped


def _finished(config: RunConfig, jobs: Sequence[Job], args: argparse.Namespace) -> Iterator[list[Row]]:
    """Run all jobs and yield, after each of them, the rows of all finished jobs in the order of `jobs`."""
    found: dict[int, list[Row]] = {}
    places = [device for device in args.devices for _ in range(args.parallel)]
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        free = manager.Queue()
        for device in places:
            free.put(device)
        with ProcessPoolExecutor(len(places), mp_context=context, max_tasks_per_child=1) as pool:
            futures = {pool.submit(run_job, config, job, args.output, free): n for n, job in enumerate(jobs)}
            for future in as_completed(futures):
                found[futures[future]] = future.result()
                print(table(future.result(), header=False), flush=True)
                yield [row for _, rows in sorted(found.items()) for row in rows]


def run_job(config: RunConfig, job: Job, output: Path, free: "Queue[str]") -> list[Row]:
    """Run one method on a free device, and return the rows of its baselines and its own."""
    device = free.get()
    evaluation = config.evaluation.model_dump(mode="json")
    settings = config.model_dump(mode="json") | {
        "name": job.folder(config),
        "seed": job.seed,
        "search": job.search,
        "budgets": [config.budgets[i].model_dump(exclude_none=True) for i in job.budgets],
        "stop": {"max_tokens": job.tokens, "looks": None},
    }
    if device != "auto":
        settings["evaluation"] = evaluation | {"device": device}
    began = time.perf_counter()
    try:
        folder = output / job.folder(config)
        front = run(RunConfig.model_validate(settings), folder, databases=output / "databases")
    finally:
        free.put(device)
    return rows_of(front.record(), job.method, job.seed, job.search, time.perf_counter() - began)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
