"""Who works on a run."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from paretopress.runs import occupant
from paretopress.search.folder.runfolder import RunFolder


def test_a_run_tells_who_works_on_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    here = f"process {os.getpid()} on host {socket.gethostname()}"
    assert occupant(run) == ""
    with RunFolder(run):
        assert occupant(run) == f"{here}, no evaluation yet"
        (run / "journal.jsonl").touch()
        assert re.fullmatch(rf"{re.escape(here)}, last evaluation \d s ago", occupant(run))
    assert occupant(run) == ""


def test_a_process_that_was_killed_works_on_nothing(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lock = tmp_path / ".lock"
    lock.write_text(json.dumps({"host": socket.gethostname(), "pid": ended.pid}))
    assert occupant(tmp_path) == ""
    lock.write_text(json.dumps({"host": "another.host", "pid": ended.pid}))
    assert occupant(tmp_path) == f"process {ended.pid} on host another.host, no evaluation yet"
