"""Profile files: YAML files that hold one profile each, can be edited by hand and need no other file of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .levels.labels import parse_label
from .nearest import nearest
from .space import Profile, Space
from .storage.files import check_version, read_yaml, write_atomic

FORMAT_VERSION = 1

_HEADER = "# A paretopress profile: the level of every unit. Levels with a colon need quotes: '2:4'.\n"
_FIELDS = ("format_version", "model", "fingerprint", "method", "budget", "costs", "heldout", "units")


@dataclass(frozen=True)
class ProfileFile:
    """The content of a profile file: a profile, its origin, its costs and its held-out figures.

    Attributes:
        units: maps unit names to labels, as `Space.describe` does; units under a dropped branch are left out.
        model: name or path of the model as the user gave it.
        fingerprint: digest of that model's weights and configuration.
        method: name of the method that found the profile, for example `evolution` or `uniform`.
        budget: name of the budget for which the profile was found, for example `bits 3.25`.
        costs: maps each cost kind to the exact cost of the profile.
        heldout: held-out figures by name, for example `kl` and `perplexity`.
    """

    units: Mapping[str, str]
    model: str | None = None
    fingerprint: str | None = None
    method: str | None = None
    budget: str | None = None
    costs: Mapping[str, int | float] = field(default_factory=dict)
    heldout: Mapping[str, float] = field(default_factory=dict)

    def profile(self, space: Space) -> Profile:
        """Return the profile as level indices in `space`.

        Raises:
            ValueError: the space lacks a unit or level of the file, or a unit of the space has no level in the file.
        """
        for name in self.units:
            if name not in (known := [unit.name for unit in space.units]):
                raise ValueError(f"unit {name!r} is not in this space; {nearest(name, known)}")
        return space.parse(self.units)

    def record(self) -> dict[str, Any]:
        """Return the fields that are known, as JSON values in the order of a profile file."""
        fields = {name: getattr(self, name) for name in _FIELDS[1:]}
        known = {name: value for name, value in fields.items() if value is not None and value != {}}
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in known.items()}


def write_profile(path: Path, profile: ProfileFile) -> None:
    """Write a profile file atomically; fields that are not known are left out."""
    record = {"format_version": FORMAT_VERSION, **profile.record()}
    write_atomic(path, _HEADER + yaml.safe_dump(record, sort_keys=False, width=1000))


def read_profile(path: Path) -> ProfileFile:
    """Read a profile file that was written by this program or by hand.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a valid profile file; the message names the file, the fault and a remedy.
    """
    record = check_version(path, read_yaml(path), FORMAT_VERSION)
    _refuse_repeated_keys(path)
    for name in record:
        if name not in _FIELDS:
            raise ValueError(f"{path} has the unknown key {name!r}; {nearest(str(name), _FIELDS)}")
    text = {name: record[name] for name in ("model", "fingerprint", "method", "budget") if name in record}
    for name, value in text.items():
        if not isinstance(value, str):
            raise ValueError(f"{path}: `{name}` is {value!r}, which is not text; put it in quotes")
    return ProfileFile(
        _units(path, record.get("units")),
        **text,
        costs=_figures(path, "costs", record.get("costs", {})),
        heldout=_figures(path, "heldout", record.get("heldout", {})),
    )


def _units(path: Path, units: Any) -> dict[str, str]:
    """Return the field `units` if it maps texts to valid labels, else raise ValueError."""
    if not isinstance(units, dict) or not units:
        raise ValueError(f"{path} has no units; a profile needs `units:` with a level for every unit")
    for name, label in units.items():
        if not isinstance(name, str):
            raise ValueError(f"{path}: unit {name!r} is not text; put it in quotes")
        if not isinstance(label, str):
            raise ValueError(
                f"{path}: the level of {name} reads as {label!r}, not as text; put it in quotes, as in '2:4'"
            )
        try:
            if label not in ("keep", "drop"):
                parse_label(label)
        except ValueError as error:
            raise ValueError(f"{path}: unit {name}: {error}") from error
    return units


def _figures(path: Path, name: str, figures: Any) -> dict[str, float]:
    """Return the field `name` if it maps names to numbers, else raise ValueError."""
    if not isinstance(figures, dict):
        raise ValueError(f"{path}: `{name}` is {figures!r}; it must map names to numbers")
    for key, value in figures.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{path}: `{name}` has {value!r} for {key!r}; write a number")
    return figures


def _refuse_repeated_keys(path: Path) -> None:
    """Refuse a YAML file in which a mapping has two equal keys.

    The YAML parser silently keeps the last of them, so that a file edited by hand would lose one.
    """
    pending = [yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)]
    while pending:
        node = pending.pop()
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise ValueError(f"{path} line {line} repeats {key.value!r}; keep one of the two")
                seen.add(key.value)
                pending.append(value)
