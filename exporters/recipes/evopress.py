"""EvoPress's text formats, and how configurations found by it become profiles.

| kind | a line | label |
| --- | --- | --- |
| quantization | `module: bits` | `w{bits}g{group}a` |
| sparsity | `module: level` | `s{base}`, plus level times step zeros |
| drop | `none`, `attn`, `mlp` or `attn+mlp`, one line per block: what is removed | `keep` or `drop` per branch |

The files carry no header: group size, symmetry and step are options, the base sparsity stands in the file name.

References:
    Sieberling et al., "EvoPress: Accurate Dynamic Model Compression via Evolutionary Search", ICML 2025.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ...spaces.levels.labels import parse_label
from ...spaces.model.structure import Structure
from ...spaces.nearest import nearest
from ...spaces.profile_file import ProfileFile, read_profile, write_profile
from ...spaces.storage.ownership import check_output_file

Kind = Literal["quantization", "sparsity", "drop"]
_DROPS: dict[str, tuple[str, ...]] = {
    "none": (),
    "attn": ("attention",),
    "mlp": ("mlp",),
    "attn+mlp": ("attention", "mlp"),
}
_GGUF = re.compile(r"\d+(?:\.\d+)?\s*\(.*\)")


@dataclass(frozen=True)
class Scale:
    """What EvoPress's files leave out: the levels that their numbers stand for.

    Attributes:
        group: inputs that share a scale; None: one scale per output channel.
        symmetric: whether there is no zero point.
        base: percent of zeros at sparsity level 0; None takes the number that ends the file name (`_60.txt`).
        step: zeros from one sparsity level to the next.
    """

    group: int | None = 128
    symmetric: bool = False
    base: float | None = None
    step: int = 1_000_000


@dataclass(frozen=True)
class EvoPressConfiguration:
    """The content of one file.

    Attributes:
        kind: which of the three formats.
        levels: module path, or comma-joined paths of a fused group, to bits or sparsity level; empty for drop.
        drops: per block the branches removed (`attention`, `mlp`); empty for the other kinds.
        base: percent of zeros that the file name gives to level 0, or None.
    """

    kind: Kind
    levels: Mapping[str, int]
    drops: tuple[tuple[str, ...], ...] = ()
    base: float | None = None

    @property
    def modules(self) -> dict[str, int]:
        """Level by single module path, fused groups taken apart."""
        return {path: level for name, level in self.levels.items() for path in name.split(",")}

    def units(self, scale: Scale | None = None) -> dict[str, str]:
        """Unit name to label, names as they stand in the file.

        Raises:
            ValueError: a sparsity file whose base is neither in its name nor given, or bits out of 2..8.
        """
        scale = scale or Scale()
        if self.kind == "drop":
            return {
                f"blocks.{i}.{branch}": "drop" if branch in removed else "keep"
                for i, removed in enumerate(self.drops)
                for branch in ("attention", "mlp")
            }
        return {name: self._label(level, scale) for name, level in self.levels.items()}

    def _label(self, level: int, scale: Scale) -> str:
        if self.kind == "quantization":
            group = f"g{scale.group}" if scale.group else ""
            label = f"w{level}{group}" + ("" if scale.symmetric else "a")
        else:
            base = self.base if scale.base is None else scale.base
            if base is None:
                raise ValueError(
                    "the sparsity of level 0 is unknown; give it as base, or name the file ..._60.txt"
                )
            offset = level * scale.step
            label = f"s{base:.10g}" + (f"{offset:+d}" if offset else "")
        parse_label(label)
        return label

    def profile(self, scale: Scale | None = None, structure: Structure | None = None) -> ProfileFile:
        """A profile file; with a model's structure, every name is checked against it.

        Raises:
            ValueError: a module that the model lacks, a linear layer of the blocks without a level, or
                another number of blocks.
        """
        if structure is not None:
            self._check(structure)
        return ProfileFile(self.units(scale), method="evopress")

    def _check(self, structure: Structure) -> None:
        if self.kind == "drop":
            if len(self.drops) != len(structure.blocks):
                raise ValueError(f"the file has {len(self.drops)} blocks, the model {len(structure.blocks)}")
            return
        known = [linear.path for linear in structure.linears]
        for path in self.modules:
            if path not in known:
                raise ValueError(f"module {path!r} is not in the model; {nearest(path, known)}")
        if missing := [path for path in known if path not in self.modules]:
            raise ValueError(f"{len(missing)} layers have no level in the file, the first is {missing[0]}")

    def text(self) -> str:
        """The file's text in EvoPress's own form."""
        if self.kind == "drop":
            names = {removed: name for name, removed in _DROPS.items()}
            return "".join(names[removed] + "\n" for removed in self.drops)
        return "\n".join(f"{name}: {level}" for name, level in self.levels.items())


def read_evopress(path: Path, kind: Kind | None = None) -> EvoPressConfiguration:
    """Read one of EvoPress's files; the kind is told by its content unless given.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line that is not of the format; the message names file, line and reason.
    """
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text at byte {error.start}; give one of EvoPress's .txt files"
        ) from error
    configuration = parse_evopress(text, str(path), kind)
    if configuration.kind == "sparsity" and (match := re.search(r"_(\d{1,2}(?:\.\d+)?)$", path.stem)):
        configuration = replace(configuration, base=float(match[1]))
    return configuration


def import_file(
    file: Path,
    output: Path,
    *,
    base: float | None = None,
    step: int = 1_000_000,
    group: int | None = 128,
    symmetric: bool = False,
    kind: Kind | None = None,
    overwrite: bool = False,
) -> str:
    """Turn one of EvoPress's files into a profile file; the arguments are those of `Scale` and `read_evopress`.

    Args:
        file: path of EvoPress's file.
        output: the profile file to write.
        base: percent of zeros at sparsity level 0.
        step: zeros from one sparsity level to the next.
        group: inputs that share a scale; None: one scale per output channel.
        symmetric: whether quantised levels have no zero point.
        kind: what the file holds; told by its content if None.
        overwrite: replace an earlier profile file at `output`.

    Returns:
        A sentence that says what was read and written.

    Raises:
        ValueError: an option or a line of the file that makes no profile.
        FileExistsError: `output` exists and is no profile file, or is one and `overwrite` is not set.
    """
    if step < 1 or (group is not None and group < 1):
        raise ValueError(f"step {step} and group {group} must be at least 1")
    configuration = read_evopress(file, kind)
    profile = configuration.profile(Scale(group, symmetric, base, step))
    check_output_file(output, "profile file", read_profile, overwrite=overwrite)
    write_profile(output, profile)
    what = {"quantization": "bit widths", "sparsity": "sparsity levels", "drop": "blocks"}[configuration.kind]
    return (
        f"{output}: a profile with {len(configuration.levels) or len(configuration.drops)} {what} from {file}"
    )


def parse_evopress(text: str, source: str = "text", kind: Kind | None = None) -> EvoPressConfiguration:
    """`read_evopress` of a text; `source` stands in messages. The base sparsity stays unknown."""
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{source} is empty; give one of EvoPress's configuration files")
    if kind == "drop" or (kind is None and not any(":" in line for _, line in lines)):
        return EvoPressConfiguration("drop", {}, tuple(_drop(source, *line) for line in lines))
    levels = _levels(source, lines)
    if kind is None:
        kind = _kind_of(source, levels.values())
    if kind == "quantization":
        for number, line in lines:
            if not 2 <= int(line.rpartition(":")[2]) <= 8:
                raise ValueError(f"{source} line {number}: {line!r} is not 2 to 8 bits")
    return EvoPressConfiguration(kind, levels)


def _drop(source: str, number: int, line: str) -> tuple[str, ...]:
    if line not in _DROPS:
        raise ValueError(f"{source} line {number}: {line!r} names no branches; {nearest(line, _DROPS)}")
    return _DROPS[line]


def _levels(source: str, lines: list[tuple[int, str]]) -> dict[str, int]:
    levels: dict[str, int] = {}
    seen: dict[str, int] = {}
    for number, line in lines:
        where = f"{source} line {number}"
        head, colon, tail = (part.strip() for part in line.rpartition(":"))
        paths = [path.strip() for path in head.split(",")]
        if not colon or not all(paths):
            raise ValueError(f"{where}: {line!r} is not `module: level`")
        if _GGUF.fullmatch(tail):
            raise ValueError(
                f"{where}: {tail!r} names a GGUF type; only integer bits and levels can be imported"
            )
        if not re.fullmatch(r"[+-]?\d+", tail, re.ASCII):
            raise ValueError(f"{where}: level {tail!r} is not an integer")
        for path in paths:
            if path in seen:
                raise ValueError(
                    f"{where}: {path} has a level already, in line {seen[path]}; keep one of the two"
                )
            seen[path] = number
        levels[",".join(paths)] = int(tail)
    return levels


def _kind_of(source: str, levels: Iterable[int]) -> Kind:
    found = set(levels)
    if min(found) >= 2 and max(found) <= 8:
        return "quantization"
    if min(found) <= 0:
        return "sparsity"
    raise ValueError(
        f"{source} has levels {min(found)} to {max(found)}, neither bits (2 to 8) nor sparsity levels around 0; "
        "name the kind"
    )
