"""Time to open a journal and memory that it keeps, for journals of different length.

    python -m benchmarks.journal --lines 10000 1000000

Every line is an evaluation of a different profile on `--sequences` sequences, appended as a search does. `append` is
the time per line in microseconds. `look up` is the time per answer in microseconds, for a hundred random answers of the
opened journal. `memory` is the growth of the process that opens the journal, in millions of bytes.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np

from paretopress.evaluators.journal.journal import Journal
from paretopress.evaluators.trial import Evaluation, Fidelity, Trial

from .tables import show

FINGERPRINT = "f" * 32
LOOKED_UP = 100


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--sequences", type=int, default=16)
    args = parser.parse_args(arguments)
    rows = [row(lines, args.sequences) for lines in args.lines]
    show("Journal", ("lines", "file, MB", "append, us", "open, s", "look up, us", "memory, MB"), rows)


def row(lines: int, sequences: int) -> list[object]:
    """Write a journal in one process, open it in another, and return a row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        context = multiprocessing.get_context("spawn")
        with Pool(1, maxtasksperchild=1, context=context) as pool:
            appended = pool.apply(write, (path, lines, sequences))
            seconds, looked_up, memory = pool.apply(read, (path, lines, sequences))
        return [lines, path.stat().st_size / 1e6, appended / lines * 1e6, seconds, looked_up * 1e6, memory]


def write(path: Path, lines: int, sequences: int) -> float:
    """Append evaluations whose values have as many digits as real ones, and return the seconds that this took."""
    fidelity = Fidelity(0, 0, sequences, 512)
    values = tuple(np.random.default_rng(0).random(sequences).tolist())
    began = time.perf_counter()
    journal = Journal(path, FINGERPRINT)
    for number in range(lines):
        trial = Trial(number, (number,), fidelity)
        journal.append(f"{number:032x}", Evaluation(trial, values, values, 0.1))
    journal.close()
    return time.perf_counter() - began


def read(path: Path, lines: int, sequences: int) -> tuple[float, float, float]:
    """Return seconds to open the journal, seconds per answer, and growth of memory in millions of bytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    journal = Journal(path, FINGERPRINT)
    opened = time.perf_counter()
    fidelity = Fidelity(0, 0, sequences, 512)
    drawn = np.random.default_rng(0).integers(lines, size=LOOKED_UP).tolist()
    for number in drawn:
        if journal.lookup(f"{number:032x}", Trial(number, (number,), fidelity)) is None:
            raise ValueError(f"line {number} of {path} is not found; the journal is incomplete")
    ended = time.perf_counter()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    return opened - began, (ended - opened) / LOOKED_UP, grown


if __name__ == "__main__":
    main()
