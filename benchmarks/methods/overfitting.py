"""Overfitting of searches: how far gains on calibration text carry over to validation, by the amount of calibration.

    python -m benchmarks.methods.overfitting --model DIR --budget bits=3.25 --tokens 12000000
    python -m benchmarks.methods.overfitting --model configs/quickstart-model --budget bits=3.25 --tokens 400000 \\
        --archive 1024 4096 --set data.validation.tokens=16384

There is one run for each size of the archive's prefix, the calibration text that profiles are ranked on. From time to
time a run looks at its best profile on validation text; each look gives a row, and no look ends the run. The columns
`left on calibration` and `left on validation` are the divergence divided by that of the uniform profile on the same
text. `gap` is the second minus the first. Where calibration still falls and validation does not, more tokens only fit
the prefix. The last column is the held-out divergence of the point that the run chose. Finished runs in the output
folder are not repeated.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from paretopress.search.folder.front import LookRow
from paretopress.search.jobs.job import run
from paretopress.search.run.configuration import RunConfig, load_config

from .methods import CONFIGS

HEADER = (
    "| archive | tokens | budget | calibration KL | validation KL | left on calibration | left on validation "
    "| gap | held-out KL |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run the searches, and print the table, a row as soon as its run has ended."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="default: configs/benchmarks/bits.yaml or sparsity.yaml")
    parser.add_argument("--model", required=True)
    parser.add_argument("--budget", required=True, help="for example sparsity=0.6 or bits=3,3.25")
    parser.add_argument("--tokens", type=int, default=12_000_000, help="that every search may spend")
    parser.add_argument("--archive", type=int, nargs="+", default=[8_192, 65_536], help="sizes of the prefix")
    parser.add_argument("--method", default="frontier")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/overfitting"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    args = parser.parse_args(arguments)
    kind, _, values = args.budget.partition("=")
    path = args.config or CONFIGS / f"{'sparsity' if kind == 'sparsity' else 'bits'}.yaml"
    budgets = [{kind: float(value)} for value in values.split(",")]
    fixed = [f"model={args.model}", f"budgets={json.dumps(budgets)}", f"search={{method: {args.method}}}"]
    config = load_config(path, [*fixed, f"seed={args.seed}", *args.overrides])
    print(HEADER, flush=True)
    for archive in args.archive:
        for line in follow(config, archive, args.tokens, args.output):
            print(line, flush=True)


def follow(config: RunConfig, archive: int, tokens: int, output: Path) -> list[str]:
    """Run one search with a prefix of `archive` tokens, and return a row for each look at each budget."""
    settings = config.model_dump(mode="json") | {
        "name": f"archive-{archive}",
        "archive_tokens": archive,
        "stop": {"max_tokens": tokens, "looks": None},
    }
    front = run(RunConfig.model_validate(settings), output / settings["name"], databases=output / "databases")
    heldout = {point.budget: point.heldout_kl for point in front.points}
    end = max((look.tokens for look in front.looks), default=0)
    return [row(archive, look, heldout[look.budget] if look.tokens == end else None) for look in front.looks]


def row(archive: int, look: LookRow, heldout: float | None) -> str:
    """Format one look as a line of the markdown table, with the held-out divergence for the last look only."""
    names = ("calibration", "validation", "calibration_of_uniform", "validation_of_uniform", "gap")
    values = [getattr(look, name) for name in names]
    figures = ["" if value is None else f"{value:.4f}" for value in values]
    cells = [f"{archive:,}", f"{look.tokens / 1e6:.2f} M", look.budget, *figures]
    return "| " + " | ".join([*cells, "" if heldout is None else f"{heldout:.4f}"]) + " |"


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
