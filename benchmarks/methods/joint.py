"""Comparison of bits, sparsity, drops and their mixtures at equal stored bits, and with a limit on computation too.

    python -m benchmarks.methods.joint --model DIR --set data.source=TEXT.txt --bits 2 2.5 3.25 --macs 0.8
    python -m benchmarks.methods.joint --model configs/quickstart-model --output runs/joint --bits 3.25 \\
        --set data.length=128 --set data.calibration.tokens=4096 --set data.validation.tokens=4096 \\
        --set data.heldout.tokens=4096 --set builder.tokens=4096 --set archive_tokens=1024 --set search.rounds=1

`frontier` searches every space over the same text, with all budgets in one run. The first stage limits `--bits`, the
stored bits per linear weight with scales and masks. The second stage limits these bits and also `--macs`, a fraction of
the dense model's multiply-accumulates.

| space | levels |
| --- | --- |
| bits | levels of the configuration that only quantise, and dense |
| sparsity | levels that only set weights to zero, stored as a bitmask and 16 bits per weight left, and dense |
| drop | dropped branches; all other branches are dense |
| joint | all levels of the configuration, with mixtures and drops |
| joint, from the single kinds | the same, started from the winners of the three (whose tokens are counted here) |

The joint space contains the other three, so a run that starts from their winners is never worse than they are on
calibration text. The table shows how much of the gain remains on held-out text. A budget that a space cannot meet has a
row that says so. A bitmask costs 1 + 16 (1 - s) bits per weight, 2.6 at s = 0.9, so with a limit on bits only, zeros
pay only together with quantisation. Fewer bits never save a multiply-accumulate. The column `linear weights at` has the
share of the linear weights at each level, dropped weights included.

At the end the joint winner of the last budget is exported. Its held-out perplexity is printed twice: as in the front,
and as `AutoModelForCausalLM` computes it from the exported folder in float32 over the same sequences. The command fails
if the two differ by more than one part in a thousand. Finished runs are not repeated. The tables are written to
`results.md` and `results.json` in the output folder.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from paretopress.exporters.export import export_run
from paretopress.search.folder.front import Front, Point
from paretopress.search.folder.runfolder import RunFolder
from paretopress.search.jobs.job import run
from paretopress.search.run.assembly import Assembly, assemble
from paretopress.search.run.configuration import RunConfig, load_config
from paretopress.spaces.budget import BudgetConfig
from paretopress.spaces.configuration import SpaceConfig
from paretopress.spaces.construction import space_of
from paretopress.spaces.space import Space

from .joint_rows import JOINT, SEEDED, Row, infeasible, row_of, table, verdicts
from .joint_spaces import KINDS, as_joint, only

TOLERANCE = 1e-3


def main() -> None:
    """Parse the command line and compare the spaces."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--config", type=Path, default=Path("configs/benchmarks/joint.yaml"))
    parser.add_argument("--bits", type=float, nargs="+", default=[2.0, 3.25], help="per linear weight")
    parser.add_argument(
        "--macs", type=float, default=0.8, help="the second limit, a fraction of the dense model's"
    )
    parser.add_argument("--only", choices=("bits", "bits-macs"), help="one limit, or two")
    parser.add_argument("--output", type=Path, default=Path("runs/joint"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    args = parser.parse_args()
    config = load_config(args.config, [f"model={args.model}", *args.overrides])
    wanted = stages(args.bits, args.macs)
    compare(config, {args.only: wanted[args.only]} if args.only else wanted, args.output)


def compare(config: RunConfig, wanted: Mapping[str, list[BudgetConfig]], output: Path) -> list[Row]:
    """Search every space within every budget of every stage, write the tables, and check an export of the last winner.

    Raises:
        SystemExit: the exported model has another perplexity than the winner, or the joint space meets no budget.
    """
    rows: list[Row] = []
    last: tuple[Path, str] | None = None
    for name, budgets in wanted.items():
        stage = Stage(config, output, name, budgets)
        rows += stage.rows()
        last = stage.last or last
        text = "\n".join([table(rows), "", *verdicts(rows)])
        output.mkdir(parents=True, exist_ok=True)
        (output / "results.md").write_text(text + "\n")
        (output / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(text)
    if last is None:
        raise SystemExit("no budget is feasible in the joint space; raise --bits or --macs")
    check_export(config, *last, output)
    return rows


def stages(bits: Sequence[float], macs: float) -> dict[str, list[BudgetConfig]]:
    """Return the budgets of each stage by its name: a limit on bits, then limits on bits and multiply-accumulates."""
    return {
        "bits": [BudgetConfig(bits=value) for value in bits],
        "bits-macs": [BudgetConfig(bits=value, macs=macs) for value in bits],
    }


class Stage:
    """Searches of all spaces within one set of budgets.

    Args:
        config: configuration with the joint space.
        output: folder of level databases and all runs.
        name: name of the stage, with which the names of its run folders begin.
        budgets: budgets that every space is searched within.

    Attributes:
        last: folder of the joint run that started from the single kinds, and name of the last budget that it met; None
            if it met none.
    """

    def __init__(self, config: RunConfig, output: Path, name: str, budgets: Sequence[BudgetConfig]) -> None:
        self.config = config
        self.output = output
        self.name = name
        self.databases = output / "databases"
        self.budgets = budgets
        self.last: tuple[Path, str] | None = None
        self._joint = assemble(with_space(config, config.space, [BudgetConfig(macs=1.0)]), self.databases)

    def rows(self) -> list[Row]:
        """Search every space and return the rows in the order of the budgets."""
        found: list[Row] = []
        points: list[Point] = []
        spent = 0
        for kind in KINDS:
            rows, front = self._search(kind, only(kind, self.config.space))
            found += rows
            if front is not None:
                spent += (front.tokens or 0) + (front.teacher_tokens or 0)
                points += front.points
        found += self._search(JOINT, self.config.space)[0]
        start = self._seeds(points) if points else None
        rows, front = self._search(SEEDED, self.config.space, start, spent)
        found += rows
        if front is not None:
            fitting = [row["budget"] for row in rows if row["feasible"]]
            self.last = self._run_folder(SEEDED), fitting[-1]
        order = [budget.name for budget in self.budgets]
        return sorted(found, key=lambda row: order.index(row["budget"]))

    def _run_folder(self, kind: str) -> Path:
        return self.output / f"{self.name}-{kind.replace(', ', '-').replace(' ', '-')}"

    def _search(
        self, kind: str, space_config: SpaceConfig, start: Path | None = None, before: int = 0
    ) -> tuple[list[Row], Front | None]:
        """Run one search over the budgets that the space can meet, and return a row per budget and the run's front."""
        space = space_like(self._joint, space_config)
        refused = {budget.name: why for budget in self.budgets if (why := refusal(budget, space))}
        rows = [infeasible(name, kind, why) for name, why in refused.items()]
        budgets = [budget for budget in self.budgets if budget.name not in refused]
        if not budgets:
            return rows, None
        folder = self._run_folder(kind)
        config = with_space(self.config, space_config, budgets, folder.name, start)
        print(f"{self.name}: {kind}, {', '.join(budget.name for budget in budgets)}", flush=True)
        front = run(config, folder, databases=self.databases)
        rows += [row_of(front, budget.name, kind, space, before) for budget in budgets]
        return rows, front

    def _seeds(self, points: Sequence[Point]) -> Path:
        """Write the winners of the single kinds as the front of a run of the joint space, and return its folder."""
        path = self._run_folder("single kinds")
        joint = self._joint.space
        with RunFolder(path) as folder:
            folder.settle_config({"model": self.config.model})
            folder.write_front(
                Front(
                    model=self.config.model,
                    fingerprints={"model": self._joint.checkpoint.fingerprint},
                    points=[p.model_copy(update={"profile": as_joint(p.profile, joint)}) for p in points],
                )
            )
        return path


def with_space(
    config: RunConfig,
    space: SpaceConfig,
    budgets: Sequence[BudgetConfig],
    name: str | None = None,
    start: Path | None = None,
) -> RunConfig:
    """Return the configuration with another space, other budgets, a name and a run to start from."""
    return RunConfig.model_validate(
        config.model_dump(mode="json")
        | {
            "name": name or config.name,
            "space": space.model_dump(mode="json"),
            "budgets": [budget.model_dump(exclude_none=True) for budget in budgets],
            "start_from": None if start is None else str(start),
        }
    )


def space_like(assembly: Assembly, config: SpaceConfig) -> Space:
    """Return the space of a configuration over the model of an assembly."""
    return space_of(assembly.model, config)


def refusal(budget: BudgetConfig, space: Space) -> str:
    """Return the reason why no profile of the space is within the budget, or an empty text if a profile is."""
    try:
        budget.limits(space)
    except ValueError as error:
        return str(error).partition(";")[2].partition(":")[0].strip() or str(error)
    return ""


def check_export(config: RunConfig, run_folder: Path, budget: str, output: Path) -> None:
    """Export one winner and compare its held-out perplexity with the front's.

    Raises:
        SystemExit: the two perplexities differ.
    """
    for line in export_run(run_folder, output / "model", budget=budget, overwrite=True):
        print(line)
    front = RunFolder(run_folder).read_front()
    assert front is not None
    perplexity_of_front = front.find(budget).heldout_perplexity or math.inf
    single = with_space(config, config.space, [BudgetConfig(macs=1.0)])
    data = assemble(single, output / "databases").data["heldout"]
    exported = perplexity(output / "model", torch.from_numpy(data.tokens.astype("int64")))
    print(f"front: {perplexity_of_front:.6f}; exported, by transformers: {exported:.6f}")
    if abs(exported / perplexity_of_front - 1) > TOLERANCE:
        raise SystemExit("the exported model is not the one of the front")


@torch.no_grad()
def perplexity(folder: Path, tokens_NT: torch.Tensor) -> float:
    """Compute the perplexity of a model folder in float32, one sequence at a time, over all positions but the last."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    losses = []
    for tokens_T in tokens_NT:
        logits_TV = model(tokens_T[None]).logits[0, :-1]
        losses.append(float(torch.nn.functional.cross_entropy(logits_TV, tokens_T[1:])))
    return math.exp(math.fsum(losses) / len(losses))


if __name__ == "__main__":
    main()
