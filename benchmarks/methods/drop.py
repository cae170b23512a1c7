"""Comparison of searches for branches to drop: whether they find the optimum at every budget, and for how many tokens.

    python -m benchmarks.methods.drop --model DIR --set data.source=TEXT.txt --table runs/drop
    python -m benchmarks.methods.drop --model DIR --set data.source=TEXT.txt --dropped 6 --seeds 10
    python -m benchmarks.methods.drop --model configs/quickstart-model --dropped 1 2 15 --seeds 1 \\
        --set data.calibration.tokens=2048 --set archive_tokens=1024

A state is a choice of branches to drop. Budgets are numbers of dropped branches, by default from one to all but one. A
budget with at most `--most-states` states has all its states measured on the archive's prefix, and the best of them is
the optimum. For other budgets the best state that any method found counts as best known, and `--long GENERATIONS` adds
one wider evolution. A state that drops more branches than asked is within the budget too, and counts if it is measured.

| column | runs |
| --- | --- |
| frontier | one run over all budgets together |
| evolution | EvoPress's defaults for drops, one run per budget, swaps between any two branches |
| evolution, equal | the same with EvoPress's equal counts of attention and MLP, for budgets that allow equal counts |
| greedy | one descent that passes all budgets |

A cell holds the number of seeds that found the optimum, the mean KL, the worst rank among the states within the budget,
and the mean tokens. In brackets, `own` counts the seeds that found the best state that the rule of equal counts allows.
The last line sums over the budgets. Evolution only swaps branches, so it never drops more than asked.

The tokens of a run are the sum over profiles of the tokens that each was measured on; every profile and sequence counts
once. The teacher's tokens are included. The values of
states are kept in a journal that the searches read, so nothing is measured twice, but tokens count as if everything
was. The calibration text is the archive's prefix only (`configs/benchmarks/drop.yaml`), because the comparison is about
finding states and not about how well one text represents others. For the same reason no run uses validation and none
ends early.

`--table FOLDER` keeps every measured value, so that the same call resumes after an interruption. Measuring all states
of a model with 16 branches takes 65,534 times the model's head on the prefix, 0.54 G tokens of logits at 8,192 tokens.
The blocks take little time, because neighbouring states share prefixes.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import comb
from pathlib import Path
from typing import Any

from paretopress.evaluators.journal.journal import Journal
from paretopress.evaluators.population.population import PopulationEvaluator
from paretopress.search.jobs.job import make_study
from paretopress.search.run.assembly import Assembly, assemble
from paretopress.search.run.configuration import RunConfig, load_config
from paretopress.search.run.goals import make_goals
from paretopress.search.study.study import Study
from paretopress.spaces.budget import BudgetConfig
from paretopress.spaces.space import Space
from paretopress.workers.pool import LocalPool

from .drop_rows import EQUAL, Result, rows, table
from .drop_states import Measured, drops_of, feasible, measure_states

MOST_STATES = 20_000
LONG = {"drop_balance": False, "offspring": 64, "switches": 5}
"""Settings of the wider evolution, with longer steps, because EvoPress's short steps end in local optima."""


@dataclass(frozen=True)
class Wanted:
    """A run to do.

    Attributes:
        method: column of the table that the run belongs to.
        search: settings of the search method.
        budgets: numbers of dropped branches.
        seed: seed of the search.
    """

    method: str
    search: dict[str, Any]
    budgets: tuple[int, ...]
    seed: int

    @property
    def name(self) -> str:
        """File name of the run's journal."""
        budget = str(self.budgets[0]) if len(self.budgets) == 1 else "all"
        return f"{self.method.replace(', ', '-')}-{budget}-{self.seed}.jsonl"


@dataclass(frozen=True)
class Bench:
    """Model, evaluator and measured states that all runs share.

    Attributes:
        assembly: model with its levels built.
        evaluator: evaluator of the model.
        library: journal of the states that are measured.
        folder: folder of the runs' journals.
    """

    assembly: Assembly
    evaluator: PopulationEvaluator
    library: Journal
    folder: Path

    def study(self, wanted: Wanted) -> Study:
        """Make the study of one run; its seed is that of the search only and does not change the calibration text."""
        assembly = with_budgets(self.assembly, wanted.budgets)
        content = assembly.config.model_dump(mode="json") | {"search": [wanted.search], "seed": wanted.seed}
        assembly = replace(assembly, config=RunConfig.model_validate(content))
        journal = Journal(self.folder / wanted.name, self.evaluator.fingerprint)
        study = make_study(
            assembly, make_goals(assembly), LocalPool(self.evaluator), journal, library=self.library
        )
        study.looks = None
        return study


def main() -> None:
    """Parse the command line, compare the methods, and write the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--config", type=Path, default=Path("configs/benchmarks/drop.yaml"))
    parser.add_argument(
        "--dropped", type=int, nargs="+", help="budgets; by default from 1 to all branches but one"
    )
    parser.add_argument("--seeds", type=int, default=3, help="of frontier and evolution")
    parser.add_argument(
        "--most-states", type=int, default=MOST_STATES, help="of a budget that are all measured"
    )
    parser.add_argument(
        "--long", type=int, metavar="GENERATIONS", help="of a wider run, where states are not"
    )
    parser.add_argument("--table", type=Path, help="folder that keeps what was measured")
    parser.add_argument("--output", type=Path, help="file for all figures as JSON")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    args = parser.parse_args()
    config = load_config(args.config, [f"model={args.model}", *args.overrides])
    with tempfile.TemporaryDirectory() as folder:
        found = compare(
            config, args.table or Path(folder), args.dropped, args.seeds, args.most_states, args.long
        )
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")


def compare(
    config: RunConfig,
    folder: Path,
    dropped: Sequence[int] | None = None,
    seeds: int = 1,
    most_states: int = MOST_STATES,
    long: int | None = None,
) -> dict[str, Any]:
    """Measure the states, run all searches, print the table, and return all figures.

    Args:
        config: configuration of the model, the text and EvoPress's evolution.
        folder: folder that keeps everything that is measured.
        dropped: budgets as numbers of dropped branches; None stands for one to all but one.
        seeds: number of seeds of frontier and evolution.
        most_states: largest number of states of a budget that are all measured.
        long: number of generations of the wider evolution, or None for no such run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    assembly = assemble(config, folder / "databases")
    space, fidelity = assembly.space, assembly.archive_fidelity
    branches = len(space.units)
    budgets = chosen(branches, dropped)
    assembly.build(lambda part: None)
    evaluator = assembly.evaluator()
    path = folder / "states.jsonl"
    measured = measure_states(evaluator, fidelity, feasible(branches, budgets, most_states), path)
    tokens = len(measured.means_S) * fidelity.tokens
    print(
        f"{len(measured.means_S):,} states of {', '.join(map(str, sorted(measured.complete))) or 'no'} drops on "
        f"{fidelity.tokens:,} tokens: {tokens / 1e6:.2f} M tokens, {measured.seconds:.0f} s",
        flush=True,
    )
    library = Journal(folder / ".no-journal", evaluator.fingerprint, [path])
    bench = Bench(assembly, evaluator, library, folder)
    results: list[Result] = []
    for wanted in plan(config, space, budgets, seeds, measured, long):
        results += search(bench, wanted)
    found = rows(measured, results)
    print(table(found, branches))
    return {
        "model": config.model,
        "branches": branches,
        "states": {count: comb(branches, count) for count in budgets},
        "exhaustive_tokens": tokens,
        "exhaustive_seconds": measured.seconds,
        "rows": found,
    }


def chosen(branches: int, dropped: Sequence[int] | None) -> list[int]:
    """Return the wanted numbers of dropped branches in ascending order, each once.

    By default these are all numbers from one to all branches but one.

    Raises:
        ValueError: a budget drops no branch or all branches.
    """
    wanted = sorted(set(range(1, branches) if dropped is None else dropped))
    for count in wanted:
        if not 0 < count < branches:
            raise ValueError(
                f"{count} of {branches} branches leave nothing to choose; drop 1 to {branches - 1}"
            )
    return wanted


def plan(
    config: RunConfig,
    space: Space,
    budgets: Sequence[int],
    seeds: int,
    measured: Measured,
    long: int | None = None,
) -> Iterator[Wanted]:
    """Yield every run to do: frontier for all budgets, then evolution for each budget, then greedy."""
    evolution = config.search[0].model_dump(mode="json", exclude_unset=True)
    types = len({unit.branch for unit in space.units})
    for seed in range(seeds):
        yield Wanted("frontier", {"method": "frontier"}, tuple(budgets), seed)
    for count in budgets:
        for seed in range(seeds):
            yield Wanted("evolution", evolution, (count,), seed)
        for seed in range(seeds if count % types == 0 else 0):
            yield Wanted(EQUAL, evolution | {"drop_balance": True}, (count,), seed)
        if long and count not in measured.complete:
            wider = evolution | LONG | {"generations": long}
            yield Wanted("evolution, long", wider, (count,), 0)
    greedy = {"method": "greedy", "tokens": config.archive_tokens}
    yield Wanted("greedy", greedy, tuple(budgets), 0)


def search(bench: Bench, wanted: Wanted) -> list[Result]:
    """Run one search and return its result within each of its budgets."""
    study = bench.study(wanted)
    study.run()
    study.answers.journal.close()
    space, tokens, seconds = bench.assembly.space, study.progress.total_tokens, study.progress.seconds
    results = []
    for count in wanted.budgets:
        entry = study.archive.best({"branches": len(space.units) - count})
        assert entry is not None
        drops, profile = drops_of(space, entry.profile), space.describe(entry.profile)
        results.append(
            Result(wanted.method, count, wanted.seed, entry.fitness, drops, tokens, seconds, profile)
        )
    budgets = f"{len(results)} budgets" if len(results) > 1 else f"{wanted.budgets[0]} drops"
    kl = "" if len(results) > 1 else f"KL {results[0].kl:.5f}, "
    print(
        f"{wanted.method}, {budgets}, seed {wanted.seed}: {kl}{tokens / 1e6:.2f} M tokens, {seconds:.1f} s",
        flush=True,
    )
    return results


def with_budgets(assembly: Assembly, dropped: Sequence[int]) -> Assembly:
    """Return the assembly with budgets of the given numbers of dropped branches."""
    budgets = tuple(BudgetConfig(dropped=count) for count in dropped)
    limits = tuple((budget, budget.limits(assembly.space)) for budget in budgets)
    config = assembly.config.model_copy(update={"budgets": budgets})
    return replace(assembly, config=config, limits=limits)


if __name__ == "__main__":
    main()
