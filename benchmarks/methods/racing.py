"""What racing would have saved in a run: candidates stopped as soon as they are settled to be worse than the best so far.

    paretopress search configs/quickstart.yaml --run RUN --set "budgets=[{bits: 3.25}]" --set data.calibration.tokens=65536 \\
        --set archive_tokens=32768 --set search.rounds=8 --set stop.max_tokens=3000000
    python -m benchmarks.methods.racing RUN

The candidates are those of a run of one budget that were measured on the whole prefix of the archive, in the order of its
journal. Each is compared with the best before it on the same sequences, after every `--step` of them; it is stopped where the mean
difference is more than `z` standard errors. `of all tokens` counts what the search spent, slopes included.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..tables import show

Floats = npt.NDArray[np.float64]


def main() -> None:
    """Parse the command line, race, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--first", type=int, default=8, help="sequences before the first comparison")
    parser.add_argument("--step", type=int, default=4)
    args = parser.parse_args()
    candidates, length = measured(args.run / "journal.jsonl")
    spent = json.loads((args.run / "checkpoint.json").read_text())["progress"]["tokens"]
    rows = []
    for z in (2.0, 3.0, 4.0):
        saved, wrong = raced(candidates, z, args.first, args.step)
        share = saved / candidates.size
        rows.append([f"z = {z:g}", share, saved * length / spent, wrong])
    show(
        f"{len(candidates)} candidates on {candidates.shape[1]} sequences, of {spent:,} tokens in all",
        ("stopped at", "of their tokens", "of all tokens", "better, but stopped"),
        rows,
    )


def measured(journal: Path) -> tuple[Floats, int]:
    """Values (candidates, sequences) of whole evaluations, and tokens of a sequence."""
    values: dict[str, dict[int, float]] = {}
    length = 0
    for line in journal.read_text().splitlines()[1:]:
        _, key, data, _, tokens, start, _, found, *_ = json.loads(line.partition(" ")[2])
        if data == "calibration":
            length = tokens
            values.setdefault(key, {}).update(enumerate(found, start))
    most = max(map(len, values.values()))
    whole = [[row[place] for place in sorted(row)] for row in values.values() if len(row) == most]
    return np.array(whole), length


def raced(candidates_CN: Floats, z: float, first: int, step: int) -> tuple[int, int]:
    """Sequences that need not be measured, and candidates that were stopped though they were better."""
    best_N, *others = candidates_CN
    saved = wrong = 0
    for candidate_N in others:
        difference_N = candidate_N - best_N
        stop = stopped(difference_N, z, first, step)
        better = difference_N.sum() < 0
        saved += len(difference_N) - stop
        wrong += bool(better and stop < len(difference_N))
        if better and stop == len(difference_N):
            best_N = candidate_N
    return saved, wrong


def stopped(difference_N: Floats, z: float, first: int, step: int) -> int:
    """After how many sequences a candidate is given up."""
    for count in range(first, len(difference_N), step):
        seen = difference_N[:count]
        if seen.mean() > z * seen.std(ddof=1) / count**0.5:
            return count
    return len(difference_N)


if __name__ == "__main__":
    main()
