"""Sending of small files of a run (a small model, the latency table) to machines that do not see them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...spaces.storage.files import keep_by_content, visible_files
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
    model, table = Path(content["model"]), content["space"]["latency"]
    if model.is_absolute() and not model.is_dir() and (files := sent().get("model")):
        here["model"] = str(keep_by_content(folder, files))
    if table and not Path(table).is_file() and (files := sent().get("latency")):
        here["space"]["latency"] = str(keep_by_content(folder, files) / _TABLE)
    return here
