"""Sending of small files of a run (a small model, the latency table) to machines that do not see them."""

from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...spaces.storage.files import digest, visible_files, write_atomic
from ..run.configuration import RunConfig

MOST = 256 << 20
"""Largest size in bytes of a model, and of levels, to send; they stay in the object store of the node that searches."""

Files = Mapping[str, bytes]
"""Content of files by their name below a folder."""

_TABLE = "latency.yaml"


def elsewhere(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as JSON values with absolute paths, for a process with another working directory."""
    content = config.model_dump(mode="json")
    if (model := Path(config.model).expanduser()).is_dir():
        content["model"] = str(model.resolve())
    if config.space.latency:
        content["space"]["latency"] = str(Path(config.space.latency).resolve())
    return content


def packed(content: Mapping[str, Any]) -> dict[str, Files]:
    """Read the files that a configuration names and that can be sent.

    Args:
        content: configuration as `elsewhere` returns it.

    Returns:
        Files under the keys `model`, if the model is a folder of at most `MOST` bytes, and `latency`, if there is a
        latency table.
    """
    found: dict[str, Files] = {}
    model = Path(content["model"])
    files = visible_files(model) if model.is_dir() else {}
    if files and sum(path.stat().st_size for path in files) <= MOST:
        found["model"] = {name: path.read_bytes() for path, name in files.items()}
    if table := content["space"]["latency"]:
        found["latency"] = {_TABLE: Path(table).read_bytes()}
    return found


def unpacked(
    content: Mapping[str, Any], folder: Path, sent: Callable[[], Mapping[str, Files]]
) -> dict[str, Any]:
    """Write the files that this machine lacks and return the configuration with their paths.

    Args:
        content: configuration as `elsewhere` returned it on the sending machine.
        folder: folder for the files; each set of files gets a subfolder named by the digest of its content.
        sent: function that returns what `packed` returned; called only if a file is missing.
    """
    here = {**content, "space": dict(content["space"])}
    if Path(content["model"]).is_absolute() and not Path(content["model"]).is_dir():
        here["model"] = str(_kept(folder, sent().get("model", {})) or content["model"])
    if (table := content["space"]["latency"]) and not Path(table).is_file():
        kept = _kept(folder, sent().get("latency", {}))
        here["space"]["latency"] = str(kept / _TABLE) if kept else table
    return here


def _kept(folder: Path, files: Files) -> Path | None:
    """Write the files that are not there yet and return their folder, or None if there are no files."""
    if not files:
        return None
    kept = folder / digest({name: sha256(content).hexdigest() for name, content in files.items()})
    for name, content in files.items():
        if not (kept / name).is_file():
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(kept / name, content)
    return kept
