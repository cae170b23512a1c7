"""EvoPress's text formats, and the conversion of its configurations to profiles.

| kind | content of a line | label in a profile |
| --- | --- | --- |
| quantization | `module: bits` | `w{bits}g{group}a` |
| sparsity | `module: level` | `s{base}`, plus level times step zeros |
| drop | `none`, `attn`, `mlp` or `attn+mlp`: the removed branches of one block | `keep` or `drop` per branch |

The files have no header. Group size, symmetry and step must be given; the base sparsity is part of the file name.

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
    """The meaning of the numbers in EvoPress's files, which the files do not say.

    Attributes:
        group: number of inputs that share a scale; None for one scale per output channel.
        symmetric: whether the grid has no zero point.
        base: percentage of zeros at sparsity level 0; None stands for the number at the end of the file name
            (`_60.txt`).
        step: number of zeros by which neighbouring sparsity levels differ.
    """

    group: int | None = 128
    symmetric: bool = False
    base: float | None = None
    step: int = 1_000_000


@dataclass(frozen=True)
class EvoPressConfiguration:
    """The content of one of EvoPress's files.

    Attributes:
        kind: kind of the file, which is one of three formats.
        levels: bits or sparsity level by module path, or by the comma-joined paths of a fused group; empty for the kind
            `drop`.
        drops: removed branches (`attention`, `mlp`) of each block; empty for the other kinds.
        base: percentage of zeros at sparsity level 0 according to the file name, or None.
    """

    kind: Kind
    levels: Mapping[str, int]
    drops: tuple[tuple[str, ...], ...] = ()
    base: float | None = None

    @property
    def modules(self) -> dict[str, int]:
        """The level of every module by its path, with fused groups split into their modules."""
        return {path: level for name, level in self.levels.items() for path in name.split(",")}

    def units(self, scale: Scale | None = None) -> dict[str, str]:
        """Return the labels by unit name; the unit names are those of the file.

        Args:
            scale: meaning of the numbers in the file; `Scale()` by default.

        Raises:
            ValueError: the base of a sparsity file is neither in its name nor given, or the bits are not in 2..8.
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
                    "the sparsity at level 0 is unknown; give it with --base, or let the file name end in it, as in ..._60.txt"
                )
            offset = level * scale.step
            label = f"s{base:.10g}" + (f"{offset:+d}" if offset else "")
        parse_label(label)
        return label

    def profile(self, scale: Scale | None = None, structure: Structure | None = None) -> ProfileFile:
        """Return the content as a profile file.

        Args:
            scale: meaning of the numbers in the file; `Scale()` by default.
            structure: structure of the model to check the names against; None for no check.

        Raises:
            ValueError: the model lacks a module or has another number of blocks, a linear layer of the blocks has no
                level, or a number is not a level.
        """
        if structure is not None:
            self._check(structure)
        return ProfileFile(self.units(scale), method="evopress")

    def _check(self, structure: Structure) -> None:
        if self.kind == "drop":
            if len(self.drops) != len(structure.blocks):
                raise ValueError(
                    f"the file has {len(self.drops)} blocks, but the model has {len(structure.blocks)}; give a file of this model"
                )
            return
        known = [linear.path for linear in structure.linears]
        for path in self.modules:
            if path not in known:
                raise ValueError(f"module {path!r} is not in the model; {nearest(path, known)}")
        if missing := [path for path in known if path not in self.modules]:
            raise ValueError(
                f"{len(missing)} layers have no level in the file, the first is {missing[0]}; give a file of this model"
            )

    def text(self) -> str:
        """Return the text of the file as EvoPress writes it."""
        if self.kind == "drop":
            names = {removed: name for name, removed in _DROPS.items()}
            return "".join(names[removed] + "\n" for removed in self.drops)
        return "\n".join(f"{name}: {level}" for name, level in self.levels.items())


def read_evopress(path: Path, kind: Kind | None = None) -> EvoPressConfiguration:
    """Read one of EvoPress's files.

    Args:
        path: path of the file; a number at the end of its name is the base of a sparsity file.
        kind: kind of the file; None to find the kind from the content.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line does not fit the format, or the kind cannot be found; the message names file and reason.
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
    """Convert one of EvoPress's files to a profile file.

    Args:
        file: path of EvoPress's file.
        output: path of the profile file to write.
        base: percentage of zeros at sparsity level 0; None to take it from the file name.
        step: number of zeros by which neighbouring sparsity levels differ.
        group: number of inputs that share a scale; None for one scale per output channel.
        symmetric: whether quantised levels have no zero point.
        kind: kind of EvoPress's file; None to find the kind from the content.
        overwrite: whether to replace an earlier profile file at `output`.

    Returns:
        A sentence for the user that says what was read and written.

    Raises:
        FileNotFoundError: `file` does not exist.
        ValueError: an option or a line of the file is not valid.
        FileExistsError: `output` exists and is not a profile file, or is one and `overwrite` is not set.
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
    """Parse the text of one of EvoPress's files. The base of a sparsity file stays unknown.

    Args:
        text: text of the file.
        source: name of the file for error messages.
        kind: kind of the file; None to find the kind from the content.

    Raises:
        ValueError: a line does not fit the format, or the kind cannot be found.
    """
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
                raise ValueError(f"{source} line {number}: {line!r} does not give 2 to 8 bits; correct it")
    return EvoPressConfiguration(kind, levels)


def _drop(source: str, number: int, line: str) -> tuple[str, ...]:
    """Return the branches that a line of a drop file removes."""
    if line not in _DROPS:
        raise ValueError(f"{source} line {number}: {line!r} names no branches; {nearest(line, _DROPS)}")
    return _DROPS[line]


def _levels(source: str, lines: list[tuple[int, str]]) -> dict[str, int]:
    """Return the number of each line by its module path or paths."""
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
    """Tell bits, which are all in 2..8, from sparsity levels, of which at least one is zero or negative."""
    found = set(levels)
    if min(found) >= 2 and max(found) <= 8:
        return "quantization"
    if min(found) <= 0:
        return "sparsity"
    raise ValueError(
        f"{source} has levels {min(found)} to {max(found)}, neither bits (2 to 8) nor sparsity levels around 0; "
        "give --kind"
    )
