"""Parcels, which are sent to another machine: the package, a configuration and the small files that it names.

A parcel is a folder with the configuration `NAME.yaml` and the folder `inputs/`. In that configuration the files that
are sent have paths of the form `inputs/...`. On the other machine the inputs are copied into the run folder, because
the working directory of a job is deleted after the job.
"""

import glob
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .search.run.file_keys import FILE_KEYS, SOURCE_KEYS, set_at, text_at
from .spaces.storage.files import keep_by_content, read_yaml, visible_files, write_yaml

if TYPE_CHECKING:
    from .search.run.configuration import RunConfig

_INPUTS = "inputs"
_HUB = "hf:"


@dataclass(frozen=True)
class Parcel:
    """Summary of what a parcel contains and what it leaves out.

    Attributes:
        travels: names of the files and folders that are sent, as the configuration gives them.
        bytes: total size of the files that are sent, in bytes.
        stays: keys and values of the configuration that the other machine must find by itself; a file that is too
            large has its size after it.
    """

    travels: list[str]
    bytes: int
    stays: list[str]


@dataclass(frozen=True)
class _Named:
    """The files that one key of a configuration names.

    Attributes:
        place: dotted key of the configuration.
        value: value of that key.
        files: maps each file on this machine to its path below `inputs/PLACE/` in the parcel; empty if the value names
            no file on this machine, such as the name of a model on the Hugging Face Hub.
        arrives: value of the key in the parcel's configuration, if the files are sent.
    """

    place: str
    value: str
    files: Mapping[Path, str] = field(default_factory=dict)
    arrives: str = ""

    @property
    def bytes(self) -> int:
        """The total size of the files in bytes."""
        return sum(path.stat().st_size for path in self.files)


def pack(config: "RunConfig", folder: Path, limit: int) -> Parcel:
    """Write a configuration and the files that it names to a folder, as many files as the limit allows.

    Args:
        config: configuration to send; its relative paths start at the working directory of this process. Its workers
            become those of Ray unless it names others.
        folder: empty folder that receives the parcel.
        limit: largest total size of the files in bytes; the smallest are sent first.

    Raises:
        ValueError: a relative path in the configuration names no file on this machine.
    """
    content = config.model_dump(mode="json")
    if "workers" not in config.model_fields_set:
        content["workers"] = {"kind": "ray"}
    travels: dict[tuple[str, ...], _Named] = {}
    stays: dict[str, str] = {}
    total = 0
    for named in sorted(_named(content), key=lambda named: named.bytes):
        key = (named.value, *map(str, named.files))
        if key in travels:
            set_at(content, named.place, travels[key].arrives)
        elif not named.files:
            stays[named.value] = f"{named.place} {named.value}"
        elif total + named.bytes > limit:
            there = _absolute(named.value)
            set_at(content, named.place, there)
            stays[named.value] = f"{named.place} {there} ({named.bytes / 1e6:,.0f} MB, too large to send)"
        else:
            total += named.bytes
            travels[key] = named
            set_at(content, named.place, named.arrives)
            for path, name in named.files.items():
                target = folder / _INPUTS / named.place / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    write_yaml(folder / f"{config.name}.yaml", content)
    return Parcel([named.value for named in travels.values()], total, list(stays.values()))


def unpack(config: Path, run: Path) -> dict[str, Any]:
    """Copy the inputs of a parcel into the run folder.

    The copies are in a folder that is named by a digest of their content, so the inputs of earlier parcels stay.

    Args:
        config: configuration file of the parcel.
        run: folder of the run, to which no other process writes.

    Returns:
        Content of the configuration, with the paths of the copied inputs.
    """
    content: dict[str, Any] = read_yaml(config)
    sent = config.parent / _INPUTS
    files = {
        str(path.relative_to(sent)): path.read_bytes() for path in sorted(sent.rglob("*")) if path.is_file()
    }
    kept = keep_by_content(run.absolute() / _INPUTS, files)
    for place in FILE_KEYS:
        hub, value = _split(text_at(content, place))
        if value.startswith(f"{_INPUTS}/"):
            set_at(content, place, f"{hub}{kept / value.removeprefix(f'{_INPUTS}/')}")
    return content


def copy_package(folder: Path) -> Path:
    """Copy this package into `folder`, following symbolic links to its subpackages, and return the path of the copy."""
    here = Path(__file__).parent
    return shutil.copytree(here, folder / here.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))


def _named(content: dict[str, Any]) -> Iterator[_Named]:
    """Yield what the keys in `FILE_KEYS` name, except the text of the standard library, which every machine has.

    Raises:
        ValueError: a relative path names no file on this machine.
    """
    for place in FILE_KEYS:
        value = text_at(content, place)
        if value in ("", "stdlib"):
            continue
        hub, path = _split(value)
        found = Path(path).expanduser()
        name = found.resolve().name
        arrives = f"{hub}{_INPUTS}/{place}/{name}"
        if place == "start_from":
            files = {found / "front.json": f"{name}/front.json"} if (found / "front.json").is_file() else {}
        elif place == "model" or hub:
            files = {file: f"{name}/{inner}" for file, inner in visible_files(found).items()}
        elif found.is_file() or place not in SOURCE_KEYS:
            files = {found: name} if found.is_file() else {}
        else:
            # A source reads its files in the order of their names, so the new names are numbers that keep the order.
            files = {file: f"{n:06}{file.suffix}" for n, file in enumerate(_matching(found))}
            arrives = f"{_INPUTS}/{place}/*"
        if not files and not (hub or found.is_absolute() or place == "model"):
            raise ValueError(
                f"{place} {value!r} is not on this machine; correct it, or give an absolute path of the cluster"
            )
        yield _Named(place, value, files, arrives)


def _matching(pattern: Path) -> list[Path]:
    """Return the files that match a pattern, in the order in which a text source reads them."""
    return [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True)) if Path(name).is_file()]


def _absolute(value: str) -> str:
    """Return a value with its path made absolute; a prefix `hf:` stays."""
    hub, path = _split(value)
    return f"{hub}{Path(path).expanduser().absolute()}"


def _split(value: str) -> tuple[str, str]:
    """Split a value into the prefix `hf:` of a Hugging Face dataset and the rest; other values have an empty prefix."""
    return (_HUB, value.removeprefix(_HUB)) if value.startswith(_HUB) else ("", value)
