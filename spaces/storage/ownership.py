"""Checks that the program replaces and deletes only regular files of its own."""

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
"""Pattern of the names of the files of a level database."""


def kind_of(path: Path) -> str | None:
    """Return the kind of the object at `path`, such as `a file`, `a folder` or `a device`; None if there is no object.

    A symbolic link is `a link`, whatever its target is.
    """
    return _KINDS[stat.S_IFMT(path.lstat().st_mode)] if os.path.lexists(path) else None


def is_own(path: Path, name: re.Pattern[str]) -> bool:
    """Tell whether `path` is a regular file whose whole name matches `name`."""
    return name.fullmatch(path.name) is not None and kind_of(path) == "a file"


def check_output_file(path: Path, kind: str, read: Callable[[Path], object], *, overwrite: bool) -> None:
    """Refuse to write a file at a path that is in use, unless the user asked to replace a file of the same kind.

    Args:
        path: the file that a command is about to write.
        kind: name of the kind of file for messages, for example `profile file`.
        read: function that reads a file of this kind and raises ValueError for any other file.
        overwrite: whether the user asked to replace an earlier file of this kind.

    Raises:
        FileExistsError: a file exists there and `overwrite` is not set, or it is not a regular file of this kind.
        PermissionError: the existing file is write-protected.
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
    """Check that all of several files can be removed, before the first of them is.

    Raises:
        PermissionError: the folder of one of the files is write-protected.
    """
    for folder in dict.fromkeys(path.parent for path in paths):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} is write-protected, so nothing was removed; make it writable")


def database_files(folder: Path) -> list[Path]:
    """List the files of a level database in `folder`, the manifest last; other files are not the program's own."""
    found = [path for path in folder.iterdir() if is_own(path, _DATABASE)] if folder.is_dir() else []
    return sorted(found, key=lambda path: (path.name == "manifest.json", path.name))
