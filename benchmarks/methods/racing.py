"""Tokens that racing would have saved in a run, by stopping candidates once they are clearly worse than the best one.

    paretopress search configs/quickstart.yaml --run RUN --set "budgets=[{bits: 3.25}]" --set data.calibration.tokens=65536 \\
        --set archive_tokens=32768 --set search.rounds=8 --set stop.max_tokens=3000000
    python -m benchmarks.methods.racing RUN

The candidates are those of a run with one budget that were measured on the whole prefix of the archive, in the order of
the journal. After every `--step` sequences a candidate is compared with the best candidate before it on the same
sequences. It is stopped if it is worse by more than `z` standard errors on average. `of their tokens` is the share of
the candidates' tokens that would be saved, and `of all tokens` the share of all tokens of the search, with those of
slopes.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..tables import show

Floats = npt.NDArray[np.float64]


def main() -> None:
    """Parse the command line, race the candidates for several values of `z`, and print the table."""
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
    """Read a journal and return the values (candidates, sequences) of complete evaluations, and tokens per sequence."""
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
    """Race candidates in order.

    Args:
        candidates_CN: fitness of C candidates on N sequences.
        z: number of standard errors at which a candidate is stopped.
        first: number of sequences before the first comparison.
        step: number of sequences between comparisons.

    Returns:
        Number of sequences that are not measured, and number of candidates that are stopped although they are better.
    """
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
    """Return the number of sequences after which a candidate is stopped, or all of them if it is not stopped.

    Args:
        difference_N: fitness of the candidate minus that of the best one, on N sequences.
        z: number of standard errors at which the candidate is stopped.
        first: number of sequences before the first comparison.
        step: number of sequences between comparisons.
    """
    for count in range(first, len(difference_N), step):
        seen = difference_N[:count]
        if seen.mean() > z * seen.std(ddof=1) / count**0.5:
            return count
    return len(difference_N)


if __name__ == "__main__":
    main()
