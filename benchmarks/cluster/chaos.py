"""Test of searches on a Ray cluster of several nodes while workers, nodes and the driver are killed with signal 9.

    python -m benchmarks.cluster.chaos
    python -m benchmarks.cluster.chaos --kills 200 --seed 1

The command starts a cluster of three raylets on this machine and searches with a tiny trained model and
`--workers ray`. At random times it kills a worker, a node or the driver. A killed node is replaced by a new one, and
after a kill of the driver the same command is started again. A finished run must have the same front as an undisturbed
run in one process, and its journal must hold the same values, none of them twice. Runs follow one another until there
were enough kills. The seed decides which processes are killed; the times differ from call to call, because the speed of
the machine does.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from ray.cluster_utils import Cluster

from tests.end_to_end.test_resume import front_of, measured
from tests.end_to_end.tiny import FRONTIER, ROOT, evolution, save_tiny, tiny_config, write_config, write_text
from tests.workers.cluster.ray_processes import worker_processes

NODES = 2
SEARCH = [FRONTIER, evolution(6)]
BUDGETS = [{"bits": 3.5}, {"bits": 4.5}]


def main() -> None:
    """Parse the command line, disturb runs until there were enough kills, and print the table.

    Raises:
        SystemExit: a search failed, or a front or a journal differs.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", type=float, default=3.0, help="seconds between kills, on average")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print("| run | kills of workers | nodes | the driver | front | values | seconds |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        total: Counter[str] = Counter()
        chaos = Chaos(Path(folder), random.Random(args.seed), args.pause)
        try:
            while sum(total.values()) < args.kills:
                total += chaos.disturb()
        finally:
            chaos.close()
    print(f"{sum(total.values())} kills: " + ", ".join(f"{n} of {what}s" for what, n in total.items()))


class Chaos:
    """A cluster, a tiny model, and a random choice of what is killed next.

    Args:
        folder: folder of model, text and all runs.
        rng: random numbers that decide when and what to kill.
        pause: mean number of seconds between two kills.
    """

    def __init__(self, folder: Path, rng: random.Random, pause: float) -> None:
        self.folder = folder
        self.rng = rng
        self.pause = pause
        self.runs = 0
        text = write_text(folder / "text.jsonl")
        self.content = tiny_config(save_tiny(folder / "model", text), text, search=SEARCH, budgets=BUDGETS)
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(NODES)]
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RAY_ADDRESS": self.cluster.address,
        }

    def close(self) -> None:
        """Shut the cluster down."""
        self.cluster.shutdown()

    def disturb(self) -> Counter[str]:
        """Run a search undisturbed in one process, and the same search on the cluster with kills.

        Returns:
            Number of kills of workers, nodes and the driver.

        Raises:
            SystemExit: a search failed, or the fronts or journals of the two runs differ.
            AssertionError: a journal holds a value twice.
        """
        self.runs += 1
        content = self.content | {"seed": self.runs}
        config = write_config(self.folder / f"run{self.runs}.yaml", content)
        calm, rough = self.folder / f"calm{self.runs}", self.folder / f"rough{self.runs}"
        calm.mkdir()
        rough.mkdir()
        if self._start(config, calm, "local").wait():
            raise SystemExit((calm / "log").read_text())
        began, kills = time.monotonic(), Counter[str]()
        driver = self._start(config, rough, "ray")
        while driver.poll() is None:
            try:
                driver.wait(self.rng.expovariate(1 / self.pause))
            except subprocess.TimeoutExpired:
                what = self.rng.choice(["worker", "worker", "node", "driver"])
                kills[what] += getattr(self, f"_kill_{what}")(driver)
            if driver.poll() == -signal.SIGKILL:
                driver = self._start(config, rough, "ray")
        if driver.returncode:
            raise SystemExit((rough / "log").read_text())
        same = [read(calm) == read(rough) for read in (front_of, measured)]
        print(
            f"| {self.runs} | {kills['worker']} | {kills['node']} | {kills['driver']} | {_word(same[0])} "
            f"| {_word(same[1])} | {time.monotonic() - began:.0f} |",
            flush=True,
        )
        if not all(same):
            raise SystemExit("the disturbed run differs")
        return kills

    def _start(self, config: Path, cwd: Path, workers: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "paretopress", "search", str(config), "--workers", workers]
        if workers == "ray":
            for value in ("cpus=1", "max_failures=1000", "retries=20"):
                command += ["--set", f"workers.{value}"]
        with (cwd / "log").open("ab") as log:
            return subprocess.Popen(command, cwd=cwd, env=self.environment, stdout=log, stderr=log)

    def _kill_worker(self, driver: object) -> int:
        del driver
        found = worker_processes()
        if found:
            os.kill(self.rng.choice(found), signal.SIGKILL)
        return len(found[:1])

    def _kill_node(self, driver: object) -> int:
        del driver
        self.cluster.remove_node(self.nodes.pop(self.rng.randrange(NODES)), allow_graceful=False)
        self.nodes.append(self.cluster.add_node(num_cpus=1))
        return 1

    def _kill_driver(self, driver: "subprocess.Popen[bytes]") -> int:
        driver.kill()
        driver.wait()
        return 1


def _word(same: bool) -> str:
    return "the same" if same else "OTHER"


if __name__ == "__main__":
    main()
