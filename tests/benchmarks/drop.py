"""Whether evolution and greedy find the best drop of a small model, of which every state is measured.

    python -m tests.benchmarks.drop --model DIR --set "data.source=tinystories/*.txt"

First all states that drop exactly as many branches as the budget asks (8,008 for 6 of 16) are measured on the
archive's prefix; `--table` keeps the values for later calls. Then ten seeds of evolution with drops in any mix, of
EvoPress's equal-count rule against the optimum of its own set (its own schedule, and a wider one), and greedy. `tokens` count profiles times tokens
once per profile and sequence, the teacher's too, as everywhere; `exhaustive` is what measuring all states takes.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paretopress.evaluators.journal import Journal
from paretopress.evaluators.trial import Evaluation, Trial
from paretopress.search.assembly import Assembly, assemble
from paretopress.search.configuration import RunConfig, load_config
from paretopress.search.goals import make_goals
from paretopress.search.job import make_study
from paretopress.search.mutation import Mutation
from paretopress.search.study import Study
from paretopress.spaces.space import Profile, Space
from paretopress.workers.pool import LocalPool

Values = npt.NDArray[np.float64]
CHUNK = 1_001
WIDE = {"generations": 40, "offspring": 64, "switches": 5}
"""For the equal-count rule: its swaps stay within a type, and EvoPress's short steps end in local optima."""


@dataclass(frozen=True)
class Exhaustive:
    """Every state and its values on the archive's prefix, shape (states, sequences)."""

    profiles: list[Profile]
    values: Values
    losses: Values
    seconds: float

    def best(self, among: Sequence[int]) -> tuple[int, float]:
        """The state of lowest mean among these, and that mean."""
        means = self.values[list(among)].mean(axis=1)
        place = int(means.argmin())
        return among[place], float(means[place])


def main() -> None:
    """Parse the command line and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--config", type=Path, default=Path("configs/benchmarks/drop.yaml"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--table", type=Path, help="file (.npz) that keeps the exhaustive values")
    parser.add_argument("--output", type=Path, help="file for all figures as JSON")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    args = parser.parse_args()
    config = load_config(args.config, [f"model={args.model}", *args.overrides])
    with tempfile.TemporaryDirectory() as folder:
        found = compare(config, Path(folder), args.seeds, args.table)
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")


def compare(config: RunConfig, folder: Path, seeds: int, table: Path | None) -> dict[str, Any]:
    """Measure all states, then let the methods search for the best."""
    assembly = assemble(config, folder / "databases")
    space = assembly.space
    ((_, limits),) = assembly.limits
    kept = limits["branches"]
    states = exhaustive(assembly, len(space.units) - kept, table)
    everything = list(range(len(states.profiles)))
    balanced = [
        i for i in everything if Mutation(space, limits, "none", True, 3).is_balanced(states.profiles[i])
    ]
    tokens = len(everything) * assembly.archive_fidelity.tokens
    print(
        f"{len(everything):,} states on {assembly.archive_fidelity.tokens:,} tokens: {states.seconds:.0f} s"
    )
    found: dict[str, Any] = {"states": len(everything), "exhaustive_tokens": tokens, "rows": []}
    library = _journal(assembly, states, folder)
    print("| method | seed | found | KL | optimum | rank | tokens | of exhaustive |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    wanted = [({"method": "evolution", **_evolution(config)}, everything, seed) for seed in range(seeds)]
    rows = range(seeds if balanced else 0)
    wanted += [({"method": "evolution", "drop_balance": True}, balanced, seed) for seed in rows]
    wanted += [({"method": "evolution", "drop_balance": True, **WIDE}, balanced, seed) for seed in rows]
    wanted.append(({"method": "greedy", "tokens": assembly.archive_fidelity.tokens}, everything, 0))
    for search, among, seed in wanted:
        study = _search(assembly, search, seed, folder, library)
        row = _row(space, study, limits, states, among, tokens) | {"search": search, "seed": seed}
        name = search["method"] + (" equal counts" if among is balanced else "")
        name += ", wide" if "switches" in search else ""
        print(
            f"| {name} | {seed} | {'yes' if row['found'] else 'no'} | {row['kl']:.5f} | {row['optimum']:.5f} "
            f"| {row['rank']} of {len(among):,} | {row['tokens'] / 1e6:.2f} M "
            f"| {row['tokens'] / tokens:.1%} |",
            flush=True,
        )
        found["rows"].append(row)
    return found


def _evolution(config: RunConfig) -> dict[str, Any]:
    return config.search[0].model_dump(mode="json", exclude_unset=True)


def exhaustive(assembly: Assembly, drops: int, table: Path | None) -> Exhaustive:
    """All states with exactly this many drops, from the table if it is there."""
    units = assembly.space.units
    chosen = combinations(range(len(units)), drops)
    profiles = [
        tuple(unit.index["drop" if i in dropped else "keep"] for i, unit in enumerate(units))
        for dropped in map(frozenset, chosen)
    ]
    if table is not None and table.exists():
        with np.load(table) as stored:
            return Exhaustive(profiles, stored["values"], stored["losses"], float(stored["seconds"]))
    assembly.build(lambda part: None)
    evaluator = assembly.evaluator()
    values: list[list[float]] = []
    losses: list[list[float]] = []
    began = time.perf_counter()
    for first in range(0, len(profiles), CHUNK):
        assignments = [assembly.space.assignment(profile) for profile in profiles[first : first + CHUNK]]
        v, c = evaluator.measure(assignments, assembly.archive_fidelity)
        values, losses = values + v, losses + c
    found = Exhaustive(profiles, np.array(values), np.array(losses), time.perf_counter() - began)
    if table is not None:
        with table.open("wb") as file:
            np.savez_compressed(
                file, values=found.values, losses=found.losses.astype(np.float32), seconds=found.seconds
            )
    return found


def _journal(assembly: Assembly, states: Exhaustive, folder: Path) -> Path:
    """The exhaustive values where searches find them, so that none is measured twice."""
    path = folder / "exhaustive.jsonl"
    study = _study(assembly, folder / "unused.jsonl", None)
    journal = Journal(path, assembly.evaluator().fingerprint)
    for profile, values, losses in zip(states.profiles, states.values, states.losses, strict=True):
        trial = Trial(0, profile, assembly.archive_fidelity)
        journal.append(
            study.key(profile, "calibration"),
            Evaluation(trial, tuple(values.tolist()), tuple(losses.tolist())),
        )
    journal.close()
    return path


def _study(assembly: Assembly, journal: Path, library: Path | None) -> Study:
    evaluator = assembly.evaluator()
    goals = make_goals(assembly)
    known = Journal(journal.with_suffix(".none"), evaluator.fingerprint, [library] if library else [])
    return make_study(
        assembly, goals, LocalPool(evaluator), Journal(journal, evaluator.fingerprint), library=known
    )


def _search(assembly: Assembly, search: dict[str, Any], seed: int, folder: Path, library: Path) -> Study:
    content = assembly.config.model_dump(mode="json") | {"search": [search], "seed": seed}
    # The data stay those of the first seed: only the search draws anew.
    seeded = replace(assembly, config=RunConfig.model_validate(content))
    name = f"{search['method']}-{search.get('drop_balance')}-{search.get('switches')}-{seed}.jsonl"
    study = _study(seeded, folder / name, library)
    study.run()
    return study


def _row(
    space: Space, study: Study, limits: dict[str, int], states: Exhaustive, among: Sequence[int], tokens: int
) -> dict[str, Any]:
    best, optimum = states.best(among)
    entry = study.archive.best(limits)
    assert entry is not None
    place = states.profiles.index(entry.profile) if entry.profile in states.profiles else None
    means = np.sort(states.values[list(among)].mean(axis=1))
    return {
        "found": place == best,
        "kl": entry.fitness,
        "optimum": optimum,
        "rank": int(np.searchsorted(means, entry.fitness - 1e-9)) + 1,
        "tokens": study.progress.total_tokens,
        "profile": space.describe(entry.profile),
        "best_profile": space.describe(states.profiles[best]),
    }


if __name__ == "__main__":
    main()
