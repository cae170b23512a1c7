"""Files that are whole or absent: atomic writes, JSON and YAML with clear errors, checksums, digests."""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from .ownership import is_own

FORMAT_VERSION = 1
"""Version of the files this release writes; newer ones are refused."""

_LEFTOVER = re.compile(r"\..+\.\d+\.[0-9a-f]{8}\.part")
"""The temporary names of `write_pieces`."""


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content` so that a reader or a crash sees the old file or the new one, never a part.

    The text goes to a temporary file in the same folder, which is synced and renamed; the folder is synced.

    Raises:
        OSError: the folder is missing or cannot be written; the old file is untouched.
    """
    write_pieces(path, [content.encode() if isinstance(content, str) else content])


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
    """`write_atomic` of bytes that come in pieces; returns their SHA-256 in hex, so that none is read again."""
    part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    found = hashlib.sha256()
    try:
        with part.open("xb") as file:
            for piece in pieces:
                found.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return found.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renamed and created names in `folder` survive a power cut, where the system can be told so."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def visible_files(folder: Path) -> dict[Path, str]:
    """Files below a folder with their names there, but hidden ones and what hidden folders hold."""
    paths = {path: path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()}
    return {path: str(name) for path, name in paths.items() if not any(p.startswith(".") for p in name.parts)}


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left of `write_atomic` in `folder`; only for a process that has it to itself."""
    for part in folder.iterdir():
        if is_leftover(part):
            part.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Tell whether `path` is a temporary file of an atomic write."""
    return is_own(path, _LEFTOVER)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Floats, infinities and NaN included, read back exactly."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON; the message names file and position.
    """
    text = _text(path, "JSON")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise ValueError(f"{path} is not JSON at {where} ({error.msg}); restore or delete it") from error


def write_yaml(path: Path, value: Any) -> None:
    """Write `value` as block-style YAML in the order of its keys, atomically."""
    write_atomic(path, yaml.safe_dump(value, sort_keys=False, width=100))


def read_yaml(path: Path) -> Any:
    """The value in a YAML file; an empty one is None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML; the message names file and position.
    """
    text = _text(path, "YAML")
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1} column {mark.column + 1}" if mark else "an unknown place"
        raise ValueError(f"{path} is not YAML at {where} ({error.problem}); correct it") from error
    except yaml.reader.ReaderError as error:
        where = f"character {error.position}"
        raise ValueError(f"{path} is not YAML at {where} ({error.reason}); correct it") from error


def _text(path: Path, kind: str) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not {kind} at byte {error.start} (not UTF-8); restore or delete it"
        ) from error


def check_version(path: Path, record: Any, newest: int = FORMAT_VERSION) -> dict[str, Any]:
    """`record`, read from `path`, if this release can read it.

    Raises:
        ValueError: it is no mapping, carries no `format_version`, or one that is newer than `newest`.
    """
    version = record.get("format_version") if isinstance(record, dict) else None
    if not isinstance(version, int):
        raise ValueError(f"{path} carries no format_version; it was not written by paretopress")
    if version > newest:
        raise ValueError(
            f"{path} has format_version {version}, this release reads up to {newest}; upgrade paretopress"
        )
    return dict(record)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes in hex, in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """32 hex digits that stand for a JSON value: equal values, whatever the order of their keys, agree.

    Tuples count as lists; 1 and 1.0 differ.

    Raises:
        TypeError: `value` holds something that is not a JSON value.
        ValueError: it holds NaN or an infinity, which have no canonical text.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
