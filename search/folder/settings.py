"""Comparison of two configurations, key by key."""

import json
from collections.abc import Mapping
from typing import Any

_ABSENT = "(absent)"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the values of nested mappings as JSON text by dotted key; lists and empty mappings count as values."""
    found: dict[str, str] = {}
    for key, value in config.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{dotted}.")
        else:
            found[dotted] = json.dumps(value, sort_keys=True)
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return a mapping from every dotted key that differs to its old and its new value.

    Keys are in the order of `old`, then of `new`. Values are JSON text, or `(absent)` where one configuration lacks the
    key.
    """
    before, after = flatten(old), flatten(new)
    return {
        key: (before.get(key, _ABSENT), after.get(key, _ABSENT))
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    }
