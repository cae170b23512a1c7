"""Profile files: one profile as YAML that a person reads and edits, complete without the run it came from."""

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
    """One profile and what is known of it.

    Attributes:
        units: unit name to label, as `Space.describe` gives it: units under a dropped branch are left out.
        model: the model as the user named it.
        fingerprint: digest of that model's weights and configuration.
        method: who found the profile, for example `evolution` or `uniform`.
        budget: name of the budget it was found for, for example `bits 3.25`.
        costs: cost kind to exact cost.
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
        """The profile in `space`.

        Raises:
            ValueError: a unit or level that the space lacks, or a unit of the space without a level.
        """
        for name in self.units:
            if name not in (known := [unit.name for unit in space.units]):
                raise ValueError(f"unit {name!r} is not in this space; {nearest(name, known)}")
        return space.parse(self.units)

    def record(self) -> dict[str, Any]:
        """What is known, as JSON values in the order of a profile file."""
        fields = {name: getattr(self, name) for name in _FIELDS[1:]}
        known = {name: value for name, value in fields.items() if value is not None and value != {}}
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in known.items()}


def write_profile(path: Path, profile: ProfileFile) -> None:
    """Write a profile file atomically; what is not known is left out."""
    record = {"format_version": FORMAT_VERSION, **profile.record()}
    write_atomic(path, _HEADER + yaml.safe_dump(record, sort_keys=False, width=1000))


def read_profile(path: Path) -> ProfileFile:
    """The profile in a YAML file, written by this program or by hand.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no profile file; the message names the file, what is wrong and what would be right.
    """
    record = check_version(path, read_yaml(path), FORMAT_VERSION)
    _refuse_repeated_keys(path)
    for name in record:
        if name not in _FIELDS:
            raise ValueError(f"{path} has the unknown key {name!r}; {nearest(str(name), _FIELDS)}")
    text = {name: record[name] for name in ("model", "fingerprint", "method", "budget") if name in record}
    for name, value in text.items():
        if not isinstance(value, str):
            raise ValueError(f"{path}: `{name}` is {value!r}, which is no text; put it in quotes")
    return ProfileFile(
        _units(path, record.get("units")),
        **text,
        costs=_figures(path, "costs", record.get("costs", {})),
        heldout=_figures(path, "heldout", record.get("heldout", {})),
    )


def _units(path: Path, units: Any) -> dict[str, str]:
    if not isinstance(units, dict) or not units:
        raise ValueError(f"{path} has no units; a profile needs `units:` with a level for every unit")
    for name, label in units.items():
        if not isinstance(name, str):
            raise ValueError(f"{path}: unit {name!r} is no text; put it in quotes")
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
    if not isinstance(figures, dict):
        raise ValueError(f"{path}: `{name}` is {figures!r}; it must map names to numbers")
    for key, value in figures.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{path}: `{name}` has {value!r} for {key!r}; write a number")
    return figures


def _refuse_repeated_keys(path: Path) -> None:
    """YAML readers silently keep the last of two equal keys; a profile edited by hand must not lose one."""
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
