"""Searches as jobs of a real cluster: sent, followed, left alone, stopped, gone on with."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from paretopress.search.folder.runfolder import RunFolder
from tests.end_to_end.conftest import Driver, Tiny
from tests.end_to_end.test_resume import front_of, measured, steps
from tests.end_to_end.tiny import evolution, subprocess_environment

pytestmark = pytest.mark.slow

pytest.importorskip("ray")

TOKEN = "0123456789abcdef" * 4
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """The head node of a cluster, with what its users need in their environment."""

    address: str
    environment: dict[str, str]

    def stop_job(self, job: str) -> None:
        request = urllib.request.Request(
            f"{self.address}/api/jobs/{job}/stop", headers={"Authorization": f"Bearer {TOKEN}"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.load(answer) == {"stopped": True}


def free_ports(number: int) -> list[int]:
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [server.getsockname()[1] for server in listening]
    for server in listening:
        server.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A machine with room for one worker, started as the README says, that asks for a token."""
    home = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in subprocess_environment().items() if name != "PYTHONPATH"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "HOME": str(home)}
    environment["PATH"] = f"{BIN}:{environment['PATH']}"
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    ports = dict(zip([*names, "ray-client-server-port"], free_ports(5), strict=True))
    # Sockets below it have names of at most 107 characters.
    temporary = Path("/tmp") / f"ray-{os.getpid()}-{ports['port']}"
    command = [str(BIN / "ray"), "start", "--head", "--block", f"--temp-dir={temporary}"]
    command += ["--disable-usage-stats", "--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    with (home / "ray.log").open("wb") as log:
        node = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log)
    while (home / "ray.log").read_text().count("block forever") < 1:
        assert node.poll() is None, (home / "ray.log").read_text()
        time.sleep(0.05)
    yield Head(f"http://127.0.0.1:{ports['dashboard-port']}", environment)
    node.terminate()
    node.wait(timeout=60)
    shutil.rmtree(temporary)


@dataclass(frozen=True)
class Case:
    """A configuration, the folder of its run in one process, and a driver of the head's users."""

    config: Path
    whole: Path
    driver: Driver


@pytest.fixture(scope="module")
def case(head: Head, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("submit")
    config = tiny.config(folder, search=[evolution(8)])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in head.environment.items():
            patch.setenv(name, value)
        driver = Driver("search", config, "--run", folder / "whole" / "runs" / "tiny")
    assert driver.run("--help", cwd=folder) == 0
    yield Case(config, folder / "whole", driver)
    driver.close()


def test_a_search_is_left_alone_followed_stopped_and_gone_on_with(head: Head, case: Case) -> None:
    there = Path(head.environment["HOME"]) / "paretopress"
    cwd = case.config.parent
    command = ("submit", case.config, "--address", head.address)
    first = case.driver.start(*command, "--set", "workers=local", cwd=cwd, log="first")
    began = time.monotonic()
    while steps(there) < 2 and time.monotonic() - began < 120:
        time.sleep(0.001)
    search = json.loads((there / "runs" / "tiny" / ".lock").read_text())["pid"]
    os.kill(search, signal.SIGSTOP)  # or it would be done before all that follows
    os.kill(first, signal.SIGINT)
    assert case.driver.wait(first) == 130, (cwd / "first").read_text()
    said = (cwd / "first").read_text()
    assert "run folder: ~/paretopress/runs/tiny on the head node" in said
    assert "not sent, needed on the cluster" not in said
    (job,) = re.findall(r"^job: (tiny-\S+)$", said, re.MULTILINE)
    assert said.splitlines()[-1] == (
        f"paretopress: job {job}: no longer followed, but still running. To follow it: ray job logs {job} --follow "
        f"--address {head.address}; to stop it: ray job stop {job} --address {head.address}"
    )
    follow = shlex.split(said.rpartition("To follow it: ")[2].partition(";")[0])
    again = subprocess.Popen(follow, env=head.environment, stdout=subprocess.PIPE, text=True)
    head.stop_job(job)
    os.kill(search, signal.SIGCONT)
    followed, _ = again.communicate(timeout=60)
    assert "build levels: 2 of 2 blocks" in followed
    kept = there / "runs" / "tiny"
    assert (
        f"stopped; {kept} keeps everything that was measured; submit the search again to continue it"
        in followed
    )
    assert 2 <= steps(there) < steps(case.whole)

    assert case.driver.run(*command, cwd=cwd) == 0, (cwd / "log").read_text()
    assert "workers: 1 of 1 workers" in (cwd / "log").read_text()
    found, wanted = front_of(there), front_of(case.whole)
    (inputs,) = (kept / "inputs").iterdir()
    assert found.pop("model") == str(inputs / "model" / "model")
    del wanted["model"]
    assert found == wanted
    assert measured(there) == measured(case.whole)


def test_a_run_that_is_busy_is_refused(head: Head, case: Case) -> None:
    busy, cwd = Path(head.environment["HOME"]) / "busy", case.config.parent
    with RunFolder(busy):
        options = ["--address", head.address, "--run", "~/busy"]
        assert case.driver.run("submit", case.config, *options, cwd=cwd) == 2
    said = (cwd / "log").read_text().splitlines()
    refusal = f"run {busy} is in use by process {os.getpid()} on host {socket.gethostname()}; wait for it or stop it"
    assert said[-2].startswith(f"paretopress: {refusal}")
    assert re.match(rf"paretopress: job tiny-\S+ ended with exit code 2: {re.escape(refusal)}", said[-1])
    assert not (busy / "inputs").exists()


PROGRAM = """
import os, sys, importlib.util, pathlib
from paretopress.parcel import copy_package
from paretopress.workers.cluster.ray_jobs import Jobs
files = pathlib.Path(sys.argv[2], "files")
files.mkdir(parents=True)
(files / "program.py").write_text('''
import importlib.util, os, sys
import paretopress.search
sent = os.path.dirname(os.path.dirname(paretopress.__file__))
specs = [importlib.util.find_spec(room) for room in ("spaces", "evaluators", "workers", "search", "exporters")]
rooms = [spec is not None and spec.origin.startswith(sent) for spec in specs]
print(rooms, "working_dir_files" in sent or "py_modules_files" in sent, os.path.islink(paretopress.search.__path__[0]), os.environ["RAY_USAGE_STATS_ENABLED"])
sys.exit(3)
''')
jobs = Jobs(sys.argv[1])
jobs.submit("rooms", "python program.py", copy_package(files.parent), files, {})
print(jobs.follow("rooms", lambda text: print(text, end="")))
"""


def run_python(
    program: str, *arguments: str | Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    environment = environment | {"PYTHONPATH": subprocess_environment()["PYTHONPATH"]}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_the_package_travels_and_its_rooms_are_nobody_elses(head: Head, tmp_path: Path) -> None:
    done = run_python(PROGRAM, head.address, tmp_path, environment=head.environment)
    assert done.stderr == ""
    line = f"{[False] * 5} True False 0"
    assert done.stdout.splitlines()[-2:] == [line, f"Ending(code=3, text='{line}')"]


@pytest.mark.parametrize(
    ("mode", "token", "says"),
    [("disabled", "", "Missing authentication token"), ("token", "f" * 64, "Invalid")],
)
def test_a_token_that_is_missing_or_wrong_is_asked_for(head: Head, mode: str, token: str, says: str) -> None:
    environment = head.environment | {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token}
    program = "import sys; from paretopress.workers.cluster.ray_jobs import Jobs; Jobs(sys.argv[1])"
    done = run_python(program, head.address, environment=environment)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"PermissionError: the cluster at {head.address} takes no jobs from here: ")
    assert says in last
    assert last.endswith("copy ~/.ray/auth_token from its head node or set RAY_AUTH_TOKEN")
