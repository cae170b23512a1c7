"""Whether searches find the best drop of a small model at every budget, and for how many tokens.

    python -m benchmarks.methods.drop --model DIR --set data.source=TEXT.txt --table runs/drop
    python -m benchmarks.methods.drop --model DIR --set data.source=TEXT.txt --dropped 6 --seeds 10
    python -m benchmarks.methods.drop --model configs/quickstart-model --dropped 1 2 15 --seeds 1 \\
        --set data.calibration.tokens=2048 --set archive_tokens=1024

Budgets are numbers of dropped branches, by default from one to all but one. Where a budget has at most
`--most-states` states, all of them are measured on the archive's prefix, and the best is the optimum; else the best
state that any method found is called best known (`--long GENERATIONS` adds one wider evolution to such budgets). A
state that drops more than asked is within the budget too, and counts where it is measured.

| column | what runs |
| --- | --- |
| frontier | one run over all budgets together |
| evolution | EvoPress's defaults for drops, a run per budget, swaps between any two branches |
| evolution, equal | the same with EvoPress's equal counts of attention and MLP, where the number can be divided |
| greedy | one descent that passes all budgets |

A cell holds: seeds that found the optimum (`own`: the best that the rule of equal counts allows), mean KL, worst rank
among the states within the budget, mean tokens; the last line adds up the budgets. Evolution only swaps, so it never
drops more than asked. Tokens are profiles times tokens, once per profile and sequence, the teacher's too.
Values of states are kept in a journal that the searches read, so that nothing is measured twice; tokens count as if
it were. The search's text is the archive's prefix alone (`configs/benchmarks/drop.yaml`): what is compared is how
states are found, not how well a text stands for others, so no run looks at validation, and none ends early.

`--table FOLDER` keeps every value measured, so that the same call goes on where it was interrupted. Measuring the
states of a 16-branch model costs 65,534 times the head of a model on the prefix, and next to nothing for blocks,
because neighbouring states share prefixes: 0.54 G tokens of logits at 8,192 tokens.
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
"""EvoPress's short steps end in local optima: a run that should not, beside its generations."""


@dataclass(frozen=True)
class Wanted:
    """One run.

    Attributes:
        method: column of the table.
        search: settings of the method.
        budgets: numbers of dropped branches.
        seed: of the search.
    """

    method: str
    search: dict[str, Any]
    budgets: tuple[int, ...]
    seed: int

    @property
    def name(self) -> str:
        """Of its journal."""
        budget = str(self.budgets[0]) if len(self.budgets) == 1 else "all"
        return f"{self.method.replace(', ', '-')}-{budget}-{self.seed}.jsonl"


@dataclass(frozen=True)
class Bench:
    """What all runs share: the model with its levels in memory, and what is known of its states."""

    assembly: Assembly
    evaluator: PopulationEvaluator
    library: Journal
    folder: Path

    def study(self, wanted: Wanted) -> Study:
        """The study of one run; the data stay those of the configuration's seed."""
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
    """Parse the command line and print the figures."""
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
    """Measure the states, let the methods search, and print the table; everything measured stays in `folder`."""
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
    """The budgets in order, each once; all that leave something to choose by default.

    Raises:
        ValueError: a number that drops nothing or everything.
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
    """Every run, those that serve all budgets first."""
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
    """Run one search; what it found within each of its budgets."""
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
    """The same with other budgets."""
    budgets = tuple(BudgetConfig(dropped=count) for count in dropped)
    limits = tuple((budget, budget.limits(assembly.space)) for budget in budgets)
    config = assembly.config.model_copy(update={"budgets": budgets})
    return replace(assembly, config=config, limits=limits)


if __name__ == "__main__":
    main()
