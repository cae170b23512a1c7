"""One process per run: a file lock that dies with its holder, and the holder's name for everybody else."""

import errno
import json
import os
import socket
from importlib import import_module
from pathlib import Path
from typing import IO, Any

_BEHIND = 1 << 20
"""The byte that Windows locks, behind the holder's name, which everybody may read."""


class RunLock:
    """An exclusive lock on a file, between processes and within one.

    The kernel's lock on the file decides among processes of one host and vanishes with the process that holds
    it, however the process ends. Network file systems may not carry the lock to other hosts, so the file also names its
    holder's host: a name of another host that was not erased is believed.

    Args:
        path: the file, which is made when the lock is taken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def is_own(self) -> bool:
        """Tell whether a process of ours made the file: it is empty, or names a holder, perhaps in part."""
        return self.path.is_file() and self.path.read_bytes()[:1] in (b"", b"{")

    def acquire(self) -> None:
        """Take the lock at once or not at all; the lock of a dead process of this host is taken over.

        Raises:
            BlockingIOError: the lock is held; the message names process and host of the holder.
            OSError: the file system has no locks.
        """
        file = self.path.open("a+b")
        try:
            self._take(file)
        except BaseException:
            file.close()
            raise
        self._file = file

    def _take(self, file: IO[bytes]) -> None:
        host = socket.gethostname()
        try:
            _lock(file)
        except BlockingIOError as error:
            holder = _holder(file)
            raise BlockingIOError(
                errno.EWOULDBLOCK,
                f"run {self.path.parent} is in use by process {holder.get('pid', 'unknown')} on host "
                f"{holder.get('host', host)}; wait for it or stop it, or choose another --run folder",
            ) from error
        holder = _holder(file)
        if holder.get("host", host) != host:
            raise BlockingIOError(
                errno.EWOULDBLOCK,
                f"run {self.path.parent} is in use by process {holder.get('pid')} on host {holder['host']} "
                f"(this is {host}); if that process has ended, delete {self.path}",
            )
        _name(file, {"host": host, "pid": os.getpid()})

    def release(self) -> None:
        """Erase the holder's name and give the lock back."""
        if self._file is not None:
            _name(self._file, None)
            self._file.close()
            self._file = None


def _lock(file: IO[bytes]) -> None:
    """Take the kernel's lock on a file, which ends with this process.

    Raises:
        BlockingIOError: somebody else has the lock.
    """
    try:
        fcntl = import_module("fcntl")
    except ModuleNotFoundError:  # Windows
        _lock_on_windows(file)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_on_windows(file: IO[bytes]) -> None:
    msvcrt = import_module("msvcrt")
    file.seek(_BEHIND)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except PermissionError as error:
        raise BlockingIOError(errno.EWOULDBLOCK, "the file is locked") from error


def _name(file: IO[bytes], holder: dict[str, Any] | None) -> None:
    file.truncate(0)
    file.write(json.dumps(holder).encode() if holder else b"")
    file.flush()
    os.fsync(file.fileno())


def _holder(file: IO[bytes]) -> dict[str, Any]:
    file.seek(0)
    try:
        found = json.loads(file.read(4096))
    except ValueError:
        # Empty when free; half written only by a process that was killed on this host while taking it.
        return {}
    return found if isinstance(found, dict) else {}
