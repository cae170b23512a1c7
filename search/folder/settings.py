"""Differences between two configurations, by dotted key."""

import json
from collections.abc import Mapping
from typing import Any

_ABSENT = "(absent)"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted key to value as JSON text; lists and empty mappings are values."""
    found: dict[str, str] = {}
    for key, value in config.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{dotted}.")
        else:
            found[dotted] = json.dumps(value, sort_keys=True)
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Dotted key to the old and new value of every key whose values differ, in the order of `old`, then `new`."""
    before, after = flatten(old), flatten(new)
    return {
        key: (before.get(key, _ABSENT), after.get(key, _ABSENT))
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    }
