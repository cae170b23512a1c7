"""`paretopress.json`: what an export was made from, by what, and what is in it."""

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...spaces.storage.files import write_json
from .appearing import RECORD, written_files
from .winner import Winner

FORMAT_VERSION = 1


def write_record(folder: Path, name: str, winner: Winner, details: Mapping[str, Any]) -> None:
    """Write the record of an export in the format `name`, as its last file; `details` are the format's own."""
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
    names = ("paretopress", "torch", "transformers", "safetensors", "llama-cpp-python")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
