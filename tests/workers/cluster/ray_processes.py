"""The processes of Ray's workers."""

import contextlib

import psutil


def worker_processes() -> list[int]:
    """Of the clusters that this process started, by the titles that Ray gives them."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::Worker"):
                found.append(process.pid)
    return found
