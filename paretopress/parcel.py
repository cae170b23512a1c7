"""What travels to another machine: the package, a configuration and the small files that it names.

A parcel is a folder with `NAME.yaml` and `inputs/`; the configuration names what travels as `inputs/...`. Where it
arrives, the inputs are kept beside the run, because a job's working directory does not last.
"""

import glob
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .spaces.storage.files import digest, read_yaml, sha256_file, visible_files, write_atomic, write_yaml

if TYPE_CHECKING:
    from .search.run.configuration import RunConfig

_INPUTS = "inputs"
_HUB = "hf:"
_SETS = ("data", "data.calibration", "data.validation", "data.heldout")
_SOURCES = tuple(f"{name}.source.source" for name in _SETS)
_PLACES = ("model", "space.latency", "start_from", *_SOURCES)
"""Keys of a configuration that may name files."""


@dataclass(frozen=True)
class Parcel:
    """What was packed.

    Attributes:
        travels: names of files and folders, as the configuration gives them.
        bytes: size of all files that travel.
        stays: what has to be found where the parcel arrives, with the reason.
    """

    travels: list[str]
    bytes: int
    stays: list[str]


@dataclass(frozen=True)
class _Named:
    """Files that a configuration names.

    Attributes:
        place: dotted key of the configuration.
        value: the key's value.
        files: where each file is, and where it goes below `inputs/PLACE/`; none: nothing here can travel.
        arrives: what stands there instead.
    """

    place: str
    value: str
    files: Mapping[Path, str] = field(default_factory=dict)
    arrives: str = ""

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)


def pack(config: "RunConfig", folder: Path, limit: int) -> Parcel:
    """Write a configuration, and the files that it names as far as they fit, to a folder.

    Args:
        config: whose relative paths are those of this process; `ray` is where it evaluates unless it says otherwise.
        folder: an empty folder for the files.
        limit: bytes of files; the smallest go first.

    Raises:
        ValueError: a relative path of nothing that is here.
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
            _put(content, named.place, travels[key].arrives)
        elif not named.files:
            stays[named.value] = f"{named.place} {named.value}"
        elif total + named.bytes > limit:
            there = _absolute(named.value)
            _put(content, named.place, there)
            stays[named.value] = f"{named.place} {there} ({named.bytes / 1e6:,.0f} MB do not travel)"
        else:
            total += named.bytes
            travels[key] = named
            _put(content, named.place, named.arrives)
            for path, name in named.files.items():
                target = folder / _INPUTS / named.place / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    write_yaml(folder / f"{config.name}.yaml", content)
    return Parcel([named.value for named in travels.values()], total, list(stays.values()))


def unpack(config: Path, run: Path) -> dict[str, Any]:
    """Keep a parcel's inputs beside a run, in a folder named by their content: what an earlier one brought stays.

    Args:
        config: configuration file that came with the parcel.
        run: the run's folder, which nobody else writes to.

    Returns:
        The configuration's content, naming what is kept.
    """
    content: dict[str, Any] = read_yaml(config)
    sent = config.parent / _INPUTS
    files = {str(path.relative_to(sent)): path for path in sorted(sent.rglob("*")) if path.is_file()}
    kept = run.absolute() / _INPUTS / digest({name: sha256_file(path) for name, path in files.items()})
    for name, path in files.items():
        if not (kept / name).is_file():
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(kept / name, path.read_bytes())
    for place in _PLACES:
        hub, value = _split(_get(content, place))
        if value.startswith(f"{_INPUTS}/"):
            _put(content, place, f"{hub}{kept / value.removeprefix(f'{_INPUTS}/')}")
    return content


def copy_package(folder: Path) -> Path:
    """This package as a folder of its own, also where its rooms are links; the folder."""
    here = Path(__file__).parent
    return shutil.copytree(here, folder / here.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))


def _named(content: dict[str, Any]) -> Iterator[_Named]:
    """What the configuration names and this installation does not bring along."""
    for place in _PLACES:
        value = _get(content, place)
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
        elif found.is_file() or place not in _SOURCES:
            files = {found: name} if found.is_file() else {}
        else:
            # Their order counts, not their names.
            files = {file: f"{n:06}{file.suffix}" for n, file in enumerate(_matching(found))}
            arrives = f"{_INPUTS}/{place}/*"
        if not files and not (hub or found.is_absolute() or place == "model"):
            raise ValueError(
                f"{place} {value!r} is not here; correct it, or give an absolute path of the cluster"
            )
        yield _Named(place, value, files, arrives)


def _matching(pattern: Path) -> list[Path]:
    """Files in the order in which a source reads them."""
    return [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True)) if Path(name).is_file()]


def _absolute(value: str) -> str:
    hub, path = _split(value)
    return f"{hub}{Path(path).expanduser().absolute()}"


def _split(value: str) -> tuple[str, str]:
    """The mark of a dataset, and the path."""
    return (_HUB, value.removeprefix(_HUB)) if value.startswith(_HUB) else ("", value)


def _get(content: dict[str, Any], place: str) -> str:
    """What stands at a key; empty where nothing does."""
    found: Any = content
    for key in place.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else ""


def _put(content: dict[str, Any], place: str, value: str) -> None:
    *parents, last = place.split(".")
    for key in parents:
        content = content[key]
    content[last] = value
