"""One process per run: a file lock that dies with its holder, and the holder's name for everybody else."""

import errno
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any


class RunLock:
    """An exclusive lock on `path`, between processes and within one.

    The kernel's lock on the file decides among processes of one host and vanishes with the process that holds
    it, however it ends. Network file systems may not carry it to other hosts, so the file also names its
    holder's host: a name of another host that was not erased is believed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def is_own(self) -> bool:
        """Tell whether a process of ours made the file: it is empty, or names a holder, perhaps in part."""
        return self.path.is_file() and self.path.read_bytes()[:1] in (b"", b"{")

    def acquire(self) -> None:
        """Take the lock at once or not at all; the lock of a dead process of this host is taken over.

        Raises:
            BlockingIOError: the lock is held; the message names pid and host of the holder.
            OSError: the file system has no locks.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._take(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _take(self, descriptor: int) -> None:
        host = socket.gethostname()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(descriptor)
            raise BlockingIOError(
                errno.EWOULDBLOCK,
                f"run {self.path.parent} is in use by process {holder.get('pid', 'unknown')} on host "
                f"{holder.get('host', host)}; wait for it or stop it, or choose another --run folder",
            ) from error
        holder = _holder(descriptor)
        if holder.get("host", host) != host:
            raise BlockingIOError(
                errno.EWOULDBLOCK,
                f"run {self.path.parent} is in use by process {holder.get('pid')} on host {holder['host']} "
                f"(this is {host}); if that process has ended, delete {self.path}",
            )
        self._name(descriptor, {"host": host, "pid": os.getpid()})

    def _name(self, descriptor: int, holder: dict[str, Any] | None) -> None:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode() if holder else b"", 0)
        os.fsync(descriptor)

    def release(self) -> None:
        """Give the lock back and erase the name."""
        if self._descriptor is not None:
            self._name(self._descriptor, None)
            os.close(self._descriptor)
            self._descriptor = None


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        # Empty when free; half written only by a process that was killed on this host while taking it.
        return {}
    return found if isinstance(found, dict) else {}
