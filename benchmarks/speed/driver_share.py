"""Share of a search's time that is not evaluation, and memory of the search, with a real evaluator.

    python -m benchmarks.speed.driver_share --folder /scratch --shape llama-8b --length 2048 --budget 3.25 \\
        --set archive_tokens=32768 --set data.validation.tokens=32768 --set stop.max_tokens=4000000
    python -m benchmarks.speed.driver_share --folder /scratch --model DIR --budget 3.25 --set archive_tokens=65536

The command runs a search by `frontier` through the same study as every run, and writes journal and checkpoint as a run
does. `driver` is the time of the search except waiting for answers, in all and per evaluation. `slopes` is the time of
answers to trials that ask for slopes. The values of a model with random weights have no meaning.
"""

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from paretopress.evaluators.journal.journal import Journal
from paretopress.evaluators.slopes.slope_trial import SlopeTrial
from paretopress.evaluators.trial import Evaluation, Trial
from paretopress.search.folder.runfolder import RunFolder
from paretopress.search.jobs.job import make_study
from paretopress.search.run.goals import make_goals
from paretopress.workers.pool import LocalPool, WorkerPool

from ..opening import parsed, release
from ..tables import show


class TimedPool:
    """Pool that adds up the seconds of waiting for answers of another pool, and the seconds of slopes."""

    def __init__(self, pool: WorkerPool) -> None:
        self.pool = pool
        self.seconds = 0.0
        self.slopes = 0.0

    def run(self, trials: Iterable[Trial]) -> Iterator[Evaluation]:
        """Yield the answers of the other pool, and add up the seconds of waiting for them."""
        answers = iter(self.pool.run(trials))
        while True:
            began = time.perf_counter()
            answer = next(answers, None)
            self.seconds += time.perf_counter() - began
            if answer is None:
                return
            if isinstance(answer.trial, SlopeTrial):
                self.slopes += answer.seconds
            yield answer

    def close(self) -> None:
        """Close the other pool."""
        self.pool.close()


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Parse the command line, run the search, and print and return its counts, seconds and peak memory by name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=3.25, help="stored bits per weight")
    args, wanted = parsed(arguments, parser)
    bench = wanted.open(["search={method: frontier}", f"budgets.bits={args.budget}"])
    release()
    pool = TimedPool(LocalPool(bench.evaluator))
    with TemporaryDirectory() as scratch, RunFolder(Path(scratch)) as folder:
        journal = Journal(folder.journal, bench.evaluator.fingerprint)
        study = make_study(bench.assembly, make_goals(bench.assembly), pool, journal, journal)
        study.run(lambda study: folder.write_checkpoint(study.state_dict()))
        journal.close()
    driver = study.progress.seconds - pool.seconds
    figures = {
        "evaluations": study.progress.evaluations,
        "million tokens": study.progress.tokens / 1e6,
        "seconds": study.progress.seconds,
        "slopes": pool.slopes,
        "driver": driver,
        "driver, %": 100 * driver / study.progress.seconds,
        "driver, ms each": 1e3 * driver / study.progress.evaluations,
        "peak GB": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0,
    }
    show("Time of a search by `frontier`", list(figures), [list(figures.values())])
    return figures


if __name__ == "__main__":
    main()
