"""Atomic writes of files, reading of JSON and YAML with clear errors, checksums and digests."""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from .ownership import is_own

FORMAT_VERSION = 1
"""Format version of the files that this release writes; files of a newer version are refused."""

_LEFTOVER = re.compile(r"\..+\.\d+\.[0-9a-f]{8}\.part")
"""Pattern of the names of the temporary files that `write_pieces` creates."""


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content` so that a reader, also after a crash, finds the whole old file or the whole new one.

    The content is written to a temporary file in the same folder. That file is synced and renamed to `path`, then the
    folder is synced.

    Raises:
        OSError: the folder is missing or cannot be written to; the old file is unchanged.
    """
    write_pieces(path, [content.encode() if isinstance(content, str) else content])


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
    """Write pieces of bytes to a file, as atomically as `write_atomic`, and return the file's SHA-256 in hex.

    The checksum is computed while writing, so that the file need not be read again.
    """
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
    """Sync `folder` to disk, so that files created or renamed in it survive a power cut; on Windows do nothing."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open folders.
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def visible_files(folder: Path) -> dict[Path, str]:
    """Map all files below a folder to their paths relative to it, except hidden files and files in hidden folders."""
    paths = {path: path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()}
    return {path: str(name) for path, name in paths.items() if not any(p.startswith(".") for p in name.parts)}


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that killed processes left in `folder`.

    No other process may write to the folder meanwhile, because its temporary files would be deleted too.
    """
    for part in folder.iterdir():
        if is_leftover(part):
            part.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Tell whether `path` is a temporary file of an atomic write."""
    return is_own(path, _LEFTOVER)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. All floats, including infinities and NaN, are read back exactly."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read the value in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the content is not JSON in UTF-8; the message names the file and the position.
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
    """Read the value in a YAML file; an empty file gives None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the content is not YAML in UTF-8; the message names the file and the position.
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
    """Return the text of a UTF-8 file; `kind` is the file type that error messages name."""
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not {kind} at byte {error.start} (not UTF-8); restore or delete it"
        ) from error


def check_version(path: Path, record: Any, newest: int = FORMAT_VERSION) -> dict[str, Any]:
    """Return a copy of `record`, which was read from `path`, if this release supports its format version.

    Raises:
        ValueError: the record is not a mapping, has no `format_version`, or has one that is newer than `newest`.
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
    """Return the SHA-256 of a file's bytes in hex, in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def keep_by_content(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files to a folder that is named by a digest of their names and content, and return that folder.

    Files that are there already are not written again, and other contents stay beside them.

    Args:
        folder: folder that receives the new folder.
        files: content of each file by its path in the new folder.
    """
    kept = folder / digest({name: hashlib.sha256(content).hexdigest() for name, content in files.items()})
    for name, content in files.items():
        if not (kept / name).is_file():
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(kept / name, content)
    return kept


def digest(value: Any) -> str:
    """Return a digest of a JSON value as 32 hex digits.

    Equal values have equal digests, whatever the order of the keys in their mappings. Tuples count as lists. The
    numbers 1 and 1.0 have different digests.

    Raises:
        TypeError: `value` contains an object that is not a JSON value.
        ValueError: `value` contains NaN or an infinity, which have no canonical text.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
