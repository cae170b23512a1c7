"""What the program may replace or delete: regular files of its own, and nothing else."""

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


_DATABASE = re.compile(r"manifest\.json|(block-\d{3,}|ends)\.safetensors(\.json)?")
"""Names of the files of a level database."""


def kind_of(path: Path) -> str | None:
    """Say what lies at `path`: `a file`, `a folder`, `a link` (whatever it points to), `a device`; None for nothing."""
    return _KINDS[stat.S_IFMT(path.lstat().st_mode)] if os.path.lexists(path) else None


def is_own(path: Path, name: re.Pattern[str]) -> bool:
    """Tell whether `path` is a regular file whose whole name matches `name`."""
    return name.fullmatch(path.name) is not None and kind_of(path) == "a file"


def check_output_file(path: Path, kind: str, read: Callable[[Path], object], *, overwrite: bool) -> None:
    """Refuse to write a file where something lies that the user did not ask to replace.

    Args:
        path: the file that a command is about to write.
        kind: what such a file is called, for example `profile file`.
        read: reads a file of this kind and raises ValueError for any other.
        overwrite: whether the user asked to replace an earlier file of this kind.

    Raises:
        FileExistsError: a file lies there and `overwrite` is not set, or what lies there is no regular file of this kind.
        PermissionError: the file there is write-protected.
    """
    if (found := kind_of(path)) is None:
        return
    if found != "a file":
        raise FileExistsError(f"{path} is {found}; give the name of a new file")
    if not overwrite:
        raise FileExistsError(f"{path} exists already; give another name, or replace it with --overwrite")
    if not path.stat().st_mode & 0o222 or not os.access(path, os.W_OK):
        raise PermissionError(f"{path} is write-protected; make it writable or give another name")
    try:
        read(path)
    except ValueError as error:
        raise FileExistsError(
            f"{path} is no {kind}, so it is not replaced ({error}); give another name"
        ) from error


def check_removable(paths: list[Path]) -> None:
    """Make sure, before the first of several files is removed, that all of them may be.

    Raises:
        PermissionError: a folder that holds one of them is write-protected.
    """
    for folder in dict.fromkeys(path.parent for path in paths):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} is write-protected, so nothing was removed; make it writable")


def database_files(folder: Path) -> list[Path]:
    """List the files of a level database in `folder`, the manifest last; whatever else lies there is not the program's."""
    found = [path for path in folder.iterdir() if is_own(path, _DATABASE)] if folder.is_dir() else []
    return sorted(found, key=lambda path: (path.name == "manifest.json", path.name))
