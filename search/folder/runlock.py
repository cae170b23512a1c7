"""The lock that lets only one process at a time work on a run."""

import errno
import json
import os
import socket
from importlib import import_module
from pathlib import Path
from typing import IO, Any

_BEHIND = 1 << 20
"""Offset of the byte that is locked on Windows.

It lies after the record of the holder, because other processes must be able to read that record.
"""


class RunLock:
    """An exclusive lock on a file, between processes and within one.

    On one host the kernel's lock on the file decides. The kernel releases it when the holder ends, however that
    happens. Network file systems may not carry the lock to other hosts, so the file also records host and process id of
    the holder. If it names another host, the lock counts as held.

    Args:
        path: path of the lock file, which is created when the lock is taken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def is_own(self) -> bool:
        """Tell whether the file is one that this class wrote.

        Such a file is empty or holds the record of a holder, which may be incomplete.
        """
        return self.path.is_file() and self.path.read_bytes()[:1] in (b"", b"{")

    def acquire(self) -> None:
        """Take the lock without waiting. The lock of a process of this host that has ended is taken over.

        Raises:
            BlockingIOError: another process holds the lock; the message names process and host of the holder.
            OSError: the file system does not support locks.
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
        """Erase the record of the holder and release the lock; do nothing if the lock is not held."""
        if self._file is not None:
            _name(self._file, None)
            self._file.close()
            self._file = None


def _lock(file: IO[bytes]) -> None:
    """Take the kernel's lock on a file, which the kernel releases when this process ends.

    Raises:
        BlockingIOError: another process holds the lock.
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
        # The file is empty while the lock is free. A record is incomplete only if a process of this host was killed
        # while it took the lock.
        return {}
    return found if isinstance(found, dict) else {}
