"""Held-out divergence of every search method at equal tokens, over the same levels and text.

    python -m tests.benchmarks.methods --model DIR --budget bits=3.25 --tokens 12000000 --long 47200000
    python -m tests.benchmarks.methods --model DIR --budget sparsity=0.6 --tokens 12000000 --long 35400000
    python -m tests.benchmarks.methods --model DIR --budget bits=3.25 --config configs/benchmarks/asymmetric.yaml
    python -m tests.benchmarks.methods --model configs/quickstart-model --budget bits=3.25 --tokens 2400000 \\
        --set archive_tokens=16384 --set data.validation.tokens=65536

Every row is a run by the public path (`RunConfig`, `search.job.run` with `stop.max_tokens`), in a folder of its
own; the level database is shared. `tokens` are those that guided the search: profiles times tokens, no discount
for shared prefixes, the teacher's counted; what validation took is a column of its own. `winner` says who
proposed the profile that the run's final test chose: where it says `uniform`, the method found nothing that is
significantly better. `seconds` are of searching; with `--parallel` above 1 the methods share the machine.
The tables end in `results.md` and `results.json` in the output folder.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretopress.search.assembly import assemble
from paretopress.search.configuration import RunConfig, load_config
from paretopress.search.job import run

from .plans import LONG, Room, Search, plans

CONFIGS = Path(__file__).parents[2] / "configs" / "benchmarks"


@dataclass(frozen=True)
class Job:
    """One row to be: a method with one seed."""

    method: str
    seed: int
    tokens: int | None
    search: Search

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        return f"{self.method.replace(', ', '-').replace(' ', '-')}-seed{self.seed}"


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="default: configs/benchmarks/bits.yaml or sparsity.yaml")
    parser.add_argument("--model", required=True)
    parser.add_argument("--budget", required=True, help="for example bits=3.25 or sparsity=0.6")
    parser.add_argument("--tokens", type=int, default=12_000_000, help="that every search may spend")
    parser.add_argument("--long", type=int, help="tokens of one more evolution, as a reference")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", help="names of methods")
    parser.add_argument("--without", nargs="+", default=[], help="names of methods")
    parser.add_argument("--parallel", type=int, default=1, help="methods that run side by side")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    args = parser.parse_args()
    kind, _, value = args.budget.partition("=")
    path = args.config or CONFIGS / f"{'sparsity' if kind == 'sparsity' else 'bits'}.yaml"
    overrides = [f"model={args.model}", f"budgets={{{kind}: {value}}}", *args.overrides]
    config = load_config(path, overrides)
    print(compare(config, args))


def compare(config: RunConfig, args: argparse.Namespace) -> str:
    """Build the levels, run every method, and give the table; what is finished is always on disk."""
    args.output.mkdir(parents=True, exist_ok=True)
    databases = args.output / "databases"
    began = time.perf_counter()
    assembly = assemble(config, databases)
    print(f"opened in {time.perf_counter() - began:.1f} s", flush=True)
    began = time.perf_counter()
    assembly.build(lambda part: None)
    notes = [f"levels: {assembly.database.bytes:,} bytes in {time.perf_counter() - began:.1f} s"]
    print(notes[0], flush=True)
    sizes = {name: found.tokens.size for name, found in assembly.data.items()}
    notes.append("text: " + ", ".join(f"{name} {size:,} tokens" for name, size in sizes.items()))
    ((_, limits),) = assembly.limits
    archive = assembly.archive_fidelity.tokens
    room = Room(assembly.space, limits, args.tokens, archive, config.data.length)
    jobs, skipped = _jobs(room, args)
    notes += [f"{name}: not within {args.tokens:,} tokens" for name in skipped]
    del assembly
    text = ""
    for rows in _run_all(config, jobs, args.output, args.parallel):
        text = "\n".join([table(rows), "", *notes])
        (args.output / "results.md").write_text(text + "\n")
        (args.output / "results.json").write_text(json.dumps({"rows": rows, "notes": notes}, indent=1) + "\n")
    return text


def _jobs(room: Room, args: argparse.Namespace) -> tuple[list[Job], list[str]]:
    wanted = {
        name: search
        for name, search in plans(room).items()
        if (not args.only or name in args.only) and name not in args.without
    }
    searches = {name: search for name, search in wanted.items() if search is not None}
    jobs = [Job(name, seed, room.tokens, search) for name, search in searches.items() for seed in args.seeds]
    if args.long:
        jobs.insert(0, Job(LONG, args.seeds[0], args.long, [{"method": "evolution"}]))
    return jobs, [name for name in wanted if name not in searches]


def _run_all(
    config: RunConfig, jobs: Sequence[Job], output: Path, parallel: int
) -> Iterator[list[dict[str, Any]]]:
    """The rows of all jobs finished so far, in the order of `jobs`, after each."""
    found: dict[str, list[dict[str, Any]]] = {}
    for folder, rows in _finished(config, jobs, output, parallel):
        found[folder] = rows
        print(table(rows[-1:], header=False), flush=True)
        flat = [row for job in jobs for row in found.get(job.folder, [])]
        baselines = {(row["method"], row["seed"]): row for row in flat if row["baseline"]}
        yield [*baselines.values(), *(row for row in flat if not row["baseline"])]


def _finished(
    config: RunConfig, jobs: Sequence[Job], output: Path, parallel: int
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    if parallel == 1:
        for job in jobs:
            yield job.folder, run_job(config, job, output)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(parallel, mp_context=context, max_tasks_per_child=1) as pool:
        futures = {pool.submit(run_job, config, job, output): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future].folder, future.result()


def run_job(config: RunConfig, job: Job, output: Path) -> list[dict[str, Any]]:
    """Run one method; its baselines' rows and its own."""
    settings = config.model_dump(mode="json")
    settings |= {
        "name": job.folder,
        "seed": job.seed,
        "search": job.search,
        "stop": {"max_tokens": job.tokens},
    }
    began = time.perf_counter()
    front = run(RunConfig.model_validate(settings), output / job.folder, databases=output / "databases")
    total = time.perf_counter() - began
    (point,) = front["points"]
    rows = [_row(base, {}, base["method"], job, 0.0, baseline=True) for base in front["baselines"]]
    rows.append(_row(point, front, job.method, job, total, baseline=False))
    return rows


def _row(
    point: Mapping[str, Any],
    front: Mapping[str, Any],
    method: str,
    job: Job,
    total: float,
    *,
    baseline: bool,
) -> dict[str, Any]:
    return {
        "method": method if not baseline or method == "uniform" else f"{method} (baseline)",
        "baseline": baseline,
        "seed": job.seed,
        "search": None if baseline else job.search,
        "cost": point["cost"],
        "heldout_kl": point["heldout_kl"],
        "heldout_interval": point["heldout_interval"],
        "heldout_perplexity": point["heldout_perplexity"],
        "calibration_kl": point["fitness"],
        "tokens": front.get("tokens", 0) + front.get("teacher_tokens", 0),
        "teacher_tokens": front.get("teacher_tokens", 0),
        "validation_tokens": front.get("validation_tokens", 0),
        "winner": point["method"],
        "significant": point.get("significant"),
        "seconds": front.get("seconds", 0.0),
        "total_seconds": total,
        "progress": front.get("progress", []),
        "profile": point["profile"],
    }


def table(rows: Sequence[Mapping[str, Any]], *, header: bool = True) -> str:
    """A markdown table."""
    lines = [
        "| method | seed | held-out KL | 95 % interval | perplexity | calibration KL | search tokens "
        "| validation tokens | winner | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        low, high = row["heldout_interval"]
        fitness = row["calibration_kl"]
        lines.append(
            f"| {row['method']} | {row['seed']} | {row['heldout_kl']:.4f} | {low:.4f} to {high:.4f} "
            f"| {row['heldout_perplexity']:.3f} | {'' if fitness is None else f'{fitness:.4f}'} "
            f"| {row['tokens'] / 1e6:.2f} M | {row['validation_tokens'] / 1e6:.2f} M "
            f"| {row['winner']} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines if header else lines[2:])


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
