"""The keys of a configuration whose values may name files, and access to values by dotted keys."""

from typing import Any

_SETS = ("data", "data.calibration", "data.validation", "data.heldout")
SOURCE_KEYS = tuple(f"{name}.source.source" for name in _SETS)
"""Dotted keys of the text of a resolved configuration."""

FILE_KEYS = ("model", "space.latency", "start_from", *SOURCE_KEYS)
"""Dotted keys of a resolved configuration whose values may name files."""

SHORT_KEYS = tuple(f"{name}.source" for name in _SETS)
"""Dotted keys under which a user may also write a source as one text."""


def text_at(content: object, key: str) -> str:
    """Return the text at a dotted key of a configuration; empty if there is none."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content if isinstance(content, str) else ""


def set_at(content: dict[str, Any], key: str, value: str) -> None:
    """Set the value at a dotted key, all of whose parents exist."""
    *parents, last = key.split(".")
    for part in parents:
        content = content[part]
    content[last] = value
