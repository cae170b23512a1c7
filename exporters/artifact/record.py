"""The record of an export, `paretopress.json`: its profile, files, levels, fingerprints and package versions."""

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...spaces.storage.files import write_json
from .appearing import RECORD, written_files
from .winner import Winner

FORMAT_VERSION = 1


def write_record(folder: Path, name: str, winner: Winner, details: Mapping[str, Any]) -> None:
    """Write the record of an export; it must be the last file, because it lists all files of the folder.

    Args:
        folder: folder that the export is written into.
        name: name of the export's format.
        winner: the model and profile that were written.
        details: entries of the record that belong to the format.
    """
    database = winner.database
    record = {
        "format_version": FORMAT_VERSION,
        "format": name,
        "profile": winner.profile.record(),
        "files": written_files(folder),
        "layers": dict(winner.assignment),
        **details,
        "fingerprints": {
            "model": winner.checkpoint.fingerprint,
            "database": database and database.fingerprint,
        },
        "versions": _versions(),
    }
    write_json(folder / RECORD, record)


def _versions() -> dict[str, str]:
    """Return the installed versions of the packages that affect an export."""
    names = ("paretopress", "torch", "transformers", "safetensors", "llama-cpp-python")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
