"""Comparison of search methods on simulated landscapes, by the true fitness of their best profiles over tokens.

    python -m benchmarks.methods.landscapes
    python -m benchmarks.methods.landscapes --budgets 12 --methods frontier '{method: frontier, offspring: 0}'

A landscape (`workers/simulation/landscape.py`) is a closed formula with interactions, saturation and noise. A method is
given by its name, with default settings, or by a mapping of settings. A figure is the fitness, without noise and on
unlimited text, of the profile that the method considers best after that many tokens, as a mean over budgets and
landscapes. Slopes on a landscape are exact for the move of a single unit; slopes of a model are not. A comparison takes
seconds.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import yaml
from pydantic import TypeAdapter

from paretopress.evaluators.journal.journal import Journal
from paretopress.evaluators.trial import Fidelity
from paretopress.search.asking.calibration_sequences import CalibrationSequences
from paretopress.search.asking.fixed import FixedSearcher
from paretopress.search.asking.method import MethodConfig
from paretopress.search.asking.series import SeriesSearcher
from paretopress.search.jobs.legs import legs
from paretopress.search.run.method_registry import SearchConfig
from paretopress.search.study.answers import Answers
from paretopress.search.study.archive import ParetoArchive
from paretopress.search.study.study import Study
from paretopress.workers import Landscape
from paretopress.workers.pool import LocalPool

from ..speed.overhead import layered_space, limits_of
from ..tables import show

LENGTH = 512
CALIBRATION = CalibrationSequences(1024, LENGTH, Fidelity(0, 0, 128, LENGTH))
METHODS = ("frontier", "{method: frontier, sensitivities: measured}", "dp", "evolution")
ROUGHNESS = {"additive": 0.0, "interacting": 0.5}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and print a table for each kind of landscape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", type=int, default=112)
    parser.add_argument("--budgets", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--tokens", type=float, nargs="+", default=[0.5e6, 1e6, 2e6, 5e6, 10e6, 20e6])
    args = parser.parse_args(arguments)
    for name, interaction in ROUGHNESS.items():
        rows = []
        for method in args.methods:
            began = time.perf_counter()
            found = [values(args, method, interaction, seed) for seed in args.seeds]
            rows.append([method, *np.mean(found, axis=0).tolist(), time.perf_counter() - began])
        marks = [f"{tokens / 1e6:g} M" for tokens in args.tokens]
        show(f"{name} landscapes, {args.budgets} budgets", ("method", *marks, "s"), rows)


def values(args: argparse.Namespace, method: str, interaction: float, seed: int) -> list[float]:
    """Run a method on a landscape and return the true fitness of its best profiles at each number of tokens.

    Args:
        args: options of the command line.
        method: name or YAML mapping of the method.
        interaction: strength of the landscape's interaction.
        seed: seed of landscape and method.

    Returns:
        Mean fitness over the budgets for each of `args.tokens`.
    """
    space = layered_space(args.units)
    budgets = limits_of(space, args.budgets)
    landscape = Landscape(
        space, CALIBRATION.sequences, seed, interaction=interaction, saturation=0.3, spread=0.5, noise=0.05
    )
    uniform = [space.uniform(limits) for limits in budgets.values()]
    found = legs([config_of(method)], space, list(budgets.values()), CALIBRATION, seed, {})
    with TemporaryDirectory() as folder:
        study = Study(
            SeriesSearcher(
                [lambda scored: FixedSearcher(uniform, CALIBRATION.archive), *found], CALIBRATION.archive
            ),
            Answers(
                LocalPool(landscape),
                Journal(Path(folder, "journal.jsonl"), "0" * 32),
                space=space,
                data={"calibration": "1" * 32},
            ),
            ParetoArchive(space, "bits", CALIBRATION.archive),
            budgets=budgets,
            max_tokens=int(max(args.tokens)),
        )
        curve: list[tuple[int, float]] = []

        def note(study: Study) -> None:
            best = [study.archive.best(limits) for limits in budgets.values()]
            fitness = landscape.expected([entry.profile for entry in best if entry is not None])
            curve.append((study.progress.total_tokens, float(np.mean(fitness))))

        study.run(note)
        study.answers.journal.close()
    return [next((v for t, v in reversed(curve) if t <= tokens), curve[0][1]) for tokens in args.tokens]


def config_of(method: str) -> MethodConfig:
    """Return the settings of a method that is given by its name or by a YAML mapping of settings."""
    settings = yaml.safe_load(method)
    adapter: TypeAdapter[MethodConfig] = TypeAdapter(SearchConfig)
    return adapter.validate_python(settings if isinstance(settings, dict) else {"method": method})


if __name__ == "__main__":
    main()
