"""Searches as jobs of a Ray cluster: how they are submitted, followed, and started on the cluster."""

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
"""Default folder of the runs on the cluster. The working directory of a job would not do, because Ray deletes it."""


def submit(
    settings: "RunConfig", address: str, run: str | None = None, *, fresh: bool = False, wait: bool = True
) -> int:
    """Run a search as a job of a cluster, and follow its log.

    Args:
        settings: configuration of the search; its relative paths start at the working directory of this process.
        address: address of the cluster's dashboard.
        run: path of the run folder on the head node; by default a folder in `RUNS`.
        fresh: whether the search discards what the run folder holds.
        wait: whether to follow the log until the job ends.

    Returns:
        Exit code of the search; 0 if `wait` is not set.

    Raises:
        ValueError: the run folder is a relative path, or a relative path in the configuration names no file.
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: no cluster that accepts jobs answers at the address, or the connection was lost.
        PermissionError: the cluster requires a token.
    """
    folder = _elsewhere(run or f"{RUNS}/{settings.name}")
    jobs = _connect(address)
    job = f"{settings.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    with tempfile.TemporaryDirectory(prefix="paretopress-") as scratch:
        _send(jobs, job, settings, folder, fresh, Path(scratch))
    return _follow(jobs, job) if wait else _leave(jobs, job, "submitted")


def arrive(config: Path, run: Path) -> tuple["RunConfig", Path]:
    """Copy the inputs that were sent with a job into its run folder; this runs in the job, on the cluster.

    Args:
        config: configuration file of the parcel.
        run: path of the run folder on the cluster.

    Returns:
        Configuration that names the copied inputs, and the run folder.

    Raises:
        BlockingIOError: another process works on this run.
    """
    from .search.folder.runfolder import RunFolder

    folder = run.expanduser()
    with RunFolder(folder):
        content = unpack(config, folder)
    # Imported last because it loads PyTorch, for which a job that is refused need not wait.
    from .search.run.configuration import parse_config

    return parse_config(content, str(config)), folder


def _connect(address: str) -> "Jobs":
    """Return a connection to the dashboard of a cluster.

    Raises:
        ModuleNotFoundError: Ray is not installed.
    """
    try:
        from .workers.cluster.ray_jobs import Jobs
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise ModuleNotFoundError(f"submit needs {package}; pip install 'paretopress[ray]'") from error
    return Jobs(address)


def _elsewhere(run: str) -> str:
    """Return the path of a run folder on the head node unchanged.

    Raises:
        ValueError: the path is relative, so that it has no meaning on another machine.
    """
    if not run.startswith(("/", "~/")):
        raise ValueError(
            f"run folder {run!r} is relative; give a path of the head node, /shared/runs/NAME or '~/runs/NAME'"
        )
    return run


def _send(jobs: "Jobs", job: str, settings: "RunConfig", run: str, fresh: bool, scratch: Path) -> None:
    """Pack the files of a search, print what is sent and where the run will be, and submit the job."""
    from .workers.cluster.ray_jobs import PARCEL

    files = scratch / "files"
    files.mkdir()
    parcel = pack(settings, files, PARCEL)
    named = ", ".join(["the package", "the configuration", *parcel.travels])
    console.say(f"cluster: {jobs.address}")
    console.say(f"sent to the cluster: {named} ({parcel.bytes / 1e6:.1f} MB of files)")
    if parcel.stays:
        console.say(f"not sent, needed on the cluster: {', '.join(parcel.stays)}")
    console.say(f"run folder: {run} on the head node; with several nodes, give a folder that all of them see")
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
    """Print the log of a job until the job ends, and return its exit code; an interruption leaves the job running."""
    try:
        ending = jobs.follow(job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        _leave(jobs, job, "no longer followed, but still running")
        raise
    if ending.code:
        console.note(f"job {job} ended with exit code {ending.code}: {ending.text}")
    return ending.code


def _leave(jobs: "Jobs", job: str, state: str) -> int:
    """Print the state of a job and the commands that follow and stop it, and return the exit code 0."""
    where = ["--address", jobs.address]
    console.note(
        f"job {job}: {state}. To follow it: {shlex.join(['ray', 'job', 'logs', job, '--follow', *where])}; "
        f"to stop it: {shlex.join(['ray', 'job', 'stop', job, *where])}"
    )
    return 0
