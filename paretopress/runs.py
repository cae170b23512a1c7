"""Access of the commands to runs: configurations, run folders and fronts."""

import json
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from .search.folder.front import Front
    from .search.run.configuration import RunConfig

RUNS = Path("runs")


def settle(config: Path, overrides: list[str] | None, run: Path | None) -> tuple["RunConfig", Path]:
    """Return the configuration of a file with the overrides applied, and the run folder: `run` or the default."""
    from .search.run.configuration import load_config

    settings = load_config(config, overrides or [])
    return settings, run or RUNS / settings.name


def existing(run: Path) -> Path:
    """Return the run folder `run` after a check that it exists and does not hold anything else.

    Raises:
        FileNotFoundError: there is no such folder; the message lists the runs in the default place.
        FileExistsError: the folder does not belong to a run.
    """
    from .search.folder.runfolder import RunFolder

    if not run.is_dir():
        known = sorted(str(path.parent) for path in RUNS.glob("*/config.yaml"))
        raise FileNotFoundError(f"no run at {run}; runs here: {', '.join(known) or 'none'}")
    RunFolder(run).check()
    return run


def holder(target: Path) -> Path:
    """Return the run folder that contains a profile file.

    Raises:
        ValueError: the target is a folder, or a file that is not in a run folder.
    """
    run = target.resolve().parent.parent
    if target.is_dir() or not (run / "config.yaml").is_file():
        raise ValueError(
            f"{target} is not in a run folder; name the text and the levels with --run RUN or --config FILE"
        )
    return run


def front_of(run: Path) -> "Front":
    """Return the front of a finished run.

    Raises:
        FileNotFoundError: there is no such run, or it has no front yet.
        FileExistsError: the folder does not belong to a run.
    """
    from .search.folder.runfolder import RunFolder

    front = RunFolder(existing(run)).read_front()
    if front is None:
        raise FileNotFoundError(f"{run} has no front yet; see its progress with `paretopress status {run}`")
    return front


def occupant(run: Path) -> str:
    """Return a text that names the process that works on a run and the time since its last evaluation.

    The text is empty if no process works on the run. A process on another host is assumed to be alive.
    """
    try:
        holder = json.loads((run / ".lock").read_text())
    except (FileNotFoundError, ValueError):
        return ""
    if holder["host"] == socket.gethostname() and not psutil.pid_exists(holder["pid"]):
        return ""
    journal = run / "journal.jsonl"
    seconds = time.time() - journal.stat().st_mtime if journal.exists() else None
    last = "no evaluation yet" if seconds is None else f"last evaluation {max(seconds, 0):.0f} s ago"
    return f"process {holder['pid']} on host {holder['host']}, {last}"
