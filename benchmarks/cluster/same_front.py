"""Check that a search gives the same front and journal, bit for bit, in one process and on any number of Ray workers.

    python -m benchmarks.cluster.same_front
    python -m benchmarks.cluster.same_front --config configs/quickstart.yaml --workers 1 2 4 --set search.rounds=1

The cluster runs on this machine, with one raylet of one CPU for each of the largest number of workers.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ray.cluster_utils import Cluster

from tests.end_to_end.test_resume import front_of, measured
from tests.end_to_end.tiny import ROOT

from ..tables import show


def main() -> None:
    """Parse the command line, run all searches, and compare their fronts and journals.

    Raises:
        SystemExit: a search failed, or a front or a journal differs.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "quickstart.yaml")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    args = parser.parse_args()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(max(args.workers) - 1):
        cluster.add_node(num_cpus=1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": cluster.address}
    rows: list[list[object]] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for workers in (0, *args.workers):
                here = Path(folder) / str(workers)
                here.mkdir()
                command = [sys.executable, "-m", "paretopress", "search", str(args.config.resolve())]
                command += ["--run", "runs/tiny", "--set", "evaluation.threads=1"]
                command += [part for override in args.overrides for part in ("--set", override)]
                if workers:
                    command += ["--workers", "ray", "--set", "workers.cpus=1"]
                    command += ["--set", f"workers.number={workers}"]
                began = time.monotonic()
                subprocess.run(command, cwd=here, env=environment, check=True)
                rows.append([workers or "in this process", time.monotonic() - began])
                for what, read in (("front", front_of), ("journal", measured)):
                    if read(here) != read(Path(folder) / "0"):
                        raise SystemExit(f"the {what} of {workers} workers differs")
    finally:
        cluster.shutdown()
    show("Equal fronts, equal journals", ("workers", "seconds"), rows)


if __name__ == "__main__":
    main()
