"""Searches as jobs of a Ray cluster: sending them off, following them, and what they do there."""

import secrets
import shlex
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from . import console
from .parcel import copy_package, pack, unpack

if TYPE_CHECKING:
    from .search.run.configuration import RunConfig
    from .workers.cluster.ray_jobs import Jobs

RUNS = "~/paretopress/runs"
"""Where a job keeps its runs unless told otherwise: not in its working directory, which Ray deletes."""


def submit(
    settings: "RunConfig", address: str, run: str | None = None, *, fresh: bool = False, wait: bool = True
) -> int:
    """Run a search as a job of a cluster, and follow its log.

    Args:
        settings: what to search; relative paths are those of this process.
        address: of the cluster's dashboard.
        run: the run's folder on the head node.
        fresh: forget what that holds.
        wait: until the job ends.

    Returns:
        The search's exit code; 0 if nobody waits.

    Raises:
        ValueError: the run's folder is no path of another machine, or the configuration names what is nowhere.
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: no cluster that takes jobs is there, or it went away.
        PermissionError: the cluster wants a token.
    """
    folder = _elsewhere(run or f"{RUNS}/{settings.name}")
    jobs = _connect(address)
    job = f"{settings.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    with tempfile.TemporaryDirectory(prefix="paretopress-") as scratch:
        _send(jobs, job, settings, folder, fresh, Path(scratch))
    return _follow(jobs, job) if wait else _leave(jobs, job, "submitted")


def arrive(config: Path, run: Path) -> tuple["RunConfig", Path]:
    """In the job: the configuration that was sent, its inputs kept beside the run, and the run's folder.

    Raises:
        BlockingIOError: another process works on this run.
    """
    from .search.folder.runfolder import RunFolder

    folder = run.expanduser()
    with RunFolder(folder):
        content = unpack(config, folder)
    # Loads PyTorch, which a job that is refused need not wait for.
    from .search.run.configuration import parse_config

    return parse_config(content, str(config)), folder


def _connect(address: str) -> "Jobs":
    try:
        from .workers.cluster.ray_jobs import Jobs
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise ModuleNotFoundError(f"submit needs {package}; pip install 'paretopress[ray]'") from error
    return Jobs(address)


def _elsewhere(run: str) -> str:
    """A folder of the head node.

    Raises:
        ValueError: a path that means something only here.
    """
    if not run.startswith(("/", "~/")):
        raise ValueError(
            f"run folder {run!r} is relative; give a path of the head node, /shared/runs/NAME or '~/runs/NAME'"
        )
    return run


def _send(jobs: "Jobs", job: str, settings: "RunConfig", run: str, fresh: bool, scratch: Path) -> None:
    """Say what will happen, and start it."""
    from .workers.cluster.ray_jobs import PARCEL

    files = scratch / "files"
    files.mkdir()
    parcel = pack(settings, files, PARCEL)
    named = ", ".join(["the package", "the configuration", *parcel.travels])
    console.say(f"cluster: {jobs.address}")
    console.say(f"travels: {named} ({parcel.bytes / 1e6:.1f} MB of files)")
    if parcel.stays:
        console.say(f"the cluster must find: {', '.join(parcel.stays)}")
    console.say(
        f"run folder: {run} on the head node; where there are more nodes, a folder that all of them see"
    )
    console.say(f"job: {job}")
    command = ["python", "-m", "paretopress", "job", f"{settings.name}.yaml", "--run", run]
    jobs.submit(
        job,
        shlex.join([*command, *(["--fresh"] if fresh else [])]),
        copy_package(scratch),
        files,
        {"job_name": settings.name, "run": run},
    )


def _follow(jobs: "Jobs", job: str) -> int:
    try:
        ending = jobs.follow(job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        _leave(jobs, job, "no longer followed; it goes on")
        raise
    if ending.code:
        console.note(f"job {job} ended with exit code {ending.code}: {ending.text}")
    return ending.code


def _leave(jobs: "Jobs", job: str, state: str) -> int:
    where = ["--address", jobs.address]
    console.note(
        f"job {job}: {state}. To follow it: {shlex.join(['ray', 'job', 'logs', job, '--follow', *where])}; "
        f"to stop it: {shlex.join(['ray', 'job', 'stop', job, *where])}"
    )
    return 0
