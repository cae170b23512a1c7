"""The folder that a run leaves: its files, who may write them, and whether a configuration still fits it.

| file | content |
| --- | --- |
| config.yaml, environment.json | resolved configuration; versions, hardware, fingerprints, seed |
| journal.jsonl | every evaluation (`evaluators/journal/journal.py`) |
| checkpoint.json | the searcher's state |
| front.json, profiles/*.yaml, report.html | what was found |
| refits/BUDGET/ | the levels of a point, made anew for its profile |
| scores/MODEL.json | what a model scores on tasks |
| .lock | host and pid of the process that works on the run; empty when none does |
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ...spaces.profile_file import ProfileFile, write_profile
from ...spaces.storage.files import (
    FORMAT_VERSION,
    check_version,
    is_leftover,
    read_json,
    read_yaml,
    remove_leftovers,
    write_atomic,
    write_json,
    write_yaml,
)
from ...spaces.storage.ownership import check_removable, database_files, is_own, kind_of
from .front import Front, Point
from .runlock import RunLock
from .settings import differences

SCORES = "scores"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=,-]*")
_SCORE = re.compile(r".+-[0-9a-f]{8}\.json")
_BEGUN = {".lock", "profiles", "sensitivities", "inputs"}
"""What a run may hold before its configuration is stored."""


class RunFolder:
    """Files of one run, each written atomically and carrying `format_version`.

    Reading needs nothing; a process that writes does so inside `with folder:`, which makes the folder,
    keeps every other process out, and refuses a folder that holds something else than a run.

    Args:
        path: the folder; it may not exist yet.

    Raises:
        NotADirectoryError: there is a file of this name.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(f"run folder {path} is a file; choose another name for the run")
        self.path = path
        self.journal = path / "journal.jsonl"
        self._config = path / "config.yaml"
        self._environment = path / "environment.json"
        self._checkpoint = path / "checkpoint.json"
        self._front = path / "front.json"
        self._profiles = path / "profiles"
        self._refits = path / "refits"
        self._scores = path / SCORES
        self._files = (
            self._environment,
            self.journal,
            self._checkpoint,
            self._front,
            path / "report.html",
        )
        self._lock = RunLock(path / ".lock")

    def __enter__(self) -> Self:
        """Make the folder and lock it.

        Raises:
            FileExistsError: the folder is not a run's, or what should be a file of the run is a link or a folder.
            BlockingIOError: another process works on this run, or did on another host and did not say it ended.
        """
        self.check()
        self._check_own()
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        self._profiles.mkdir(exist_ok=True)
        remove_leftovers(self.path)
        remove_leftovers(self._profiles)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def check(self) -> None:
        """Refuse a folder that is neither empty nor a run's.

        Raises:
            FileExistsError: it holds something else; the message names it.
        """
        if (reason := self._foreign()) is not None:
            raise FileExistsError(
                f"folder {self.path} is not a run's: {reason}; give --run a new or an empty folder, or a run's own"
            )

    def _foreign(self) -> str | None:
        """Why the folder is not a run's; None if it is one, is empty or is not there."""
        names = sorted(path.name for path in self.path.iterdir()) if self.path.exists() else []
        if self._config.name in names:
            try:
                return None if "model" in (self.read_config() or {}) else f"{self._config} names no model"
            except ValueError as error:
                return str(error)
        if not names or self._is_begun():
            return None
        other = next((name for name in names if name not in _BEGUN), names[-1])
        return f"it holds {other} and no config.yaml"

    def _is_begun(self) -> bool:
        """Whether the folder is that of a run which stopped before its configuration was stored."""
        names = {path.name for path in self.path.iterdir() if not is_leftover(path)}
        profiles = self._profiles.iterdir() if self._profiles.is_dir() else ()
        return names <= _BEGUN and self._lock.is_own() and all(map(is_leftover, profiles))

    def _check_own(self) -> None:
        """Refuse to write through links, or where folders and devices have the names of the run's files."""
        for path in (self._config, *self._files, self._lock.path):
            if (found := kind_of(path)) not in (None, "a file"):
                raise FileExistsError(f"{path} is {found}, and a run needs a file there; move it away")
        for name in ("profiles", "refits", SCORES, "sensitivities", "inputs"):
            folder = self.path / name
            if (found := kind_of(folder)) not in (None, "a folder"):
                raise FileExistsError(f"{folder} is {found}, and a run needs a folder there; move it away")

    def begin_anew(self, config: Mapping[str, Any]) -> None:
        """Store the configuration of a search that starts over, and delete what earlier searches left here.

        Scores of levels (`sensitivities/`), inputs of `submit` and files that are not the program's stay.

        Raises:
            PermissionError: something may not be deleted; then nothing was.
        """
        old = self._results()
        check_removable(old)
        for path in old:
            path.unlink()
        for folder in (*self._refit_folders(), self._refits, self._scores):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        # The old configuration stays until the new one replaces it: a folder without one is nobody's.
        write_yaml(self._config, _versioned(config))

    def _results(self) -> list[Path]:
        """The files that searches, refits and task scores have left in the folder."""
        profiles = [path for path in sorted(self._profiles.glob("*.yaml")) if _is_own_profile(path)]
        levels = [file for folder in self._refit_folders() for file in database_files(folder)]
        return [*(path for path in self._files if path.exists()), *profiles, *levels, *self.task_scores()]

    def task_scores(self) -> list[Path]:
        """The files that say what models score on tasks, in the order of their names."""
        return [path for path in sorted(self._scores.glob("*.json")) if is_own(path, _SCORE)]

    def _refit_folders(self) -> list[Path]:
        return [path for path in sorted(self._refits.glob("*")) if kind_of(path) == "a folder"]

    def settle_config(self, config: Mapping[str, Any], harmless: Collection[str] = ()) -> None:
        """Store the resolved configuration of a new run, or check that it is the stored one.

        Args:
            config: JSON values (`model_dump(mode="json")`).
            harmless: dotted keys that may change between sessions of one run; a key stands for all beneath.
                When only these differ, the new configuration replaces the stored one.

        Raises:
            ValueError: other keys differ; the message names each with both values.
        """
        stored = self.read_config()
        changed = differences(stored, config) if stored is not None else {}
        serious = [
            f"{key}: {old} -> {new}"
            for key, (old, new) in changed.items()
            if not any(key == free or key.startswith(f"{free}.") for free in harmless)
        ]
        if serious:
            raise ValueError(
                f"run {self.path} was started with another configuration ({'; '.join(serious)}); "
                "undo the change, choose another --run folder, or start anew with --fresh"
            )
        if stored is None or changed:
            write_yaml(self._config, _versioned(config))

    def read_config(self) -> dict[str, Any] | None:
        """The resolved configuration; None for a run that was never started."""
        return _content(self._config, read_yaml(self._config)) if self._config.exists() else None

    def write_environment(self, record: Mapping[str, Any]) -> None:
        """Store `environment()` with fingerprints and seed."""
        write_json(self._environment, _versioned(record))

    def read_environment(self) -> dict[str, Any] | None:
        """Versions, hardware, fingerprints and seed; None if not stored yet."""
        return _read(self._environment)

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint."""
        # Not indented: that takes the encoder written in C, which is ten times as fast.
        write_atomic(self._checkpoint, json.dumps(_versioned(state), ensure_ascii=False) + "\n")

    def read_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint; None if there is none."""
        return _read(self._checkpoint)

    def write_front(self, front: Front) -> Front:
        """Replace the front; a point that finds its profile again keeps the refit it had.

        Returns:
            The front as it was stored.
        """
        known = self._refitted()
        stored = front.with_points([_with_refit(point, known.get(point.budget)) for point in front.points])
        write_json(self._front, _versioned(stored.record()))
        return stored

    def _refitted(self) -> dict[str, Point]:
        """Budget to point, of those that were refitted; a damaged front has none."""
        try:
            front = self.read_front()
        except ValueError:
            return {}
        return {point.budget: point for point in (front.points if front else ()) if point.refit is not None}

    def read_front(self) -> Front | None:
        """Return the front, or None if the run has not come that far.

        Raises:
            ValueError: `front.json` is damaged, or a newer release wrote it.
        """
        record = _read(self._front)
        return None if record is None else Front.of(record, str(self._front))

    def refit(self, name: str) -> Path:
        """Where the refitted levels of a point lie.

        Raises:
            ValueError: a name that is not a plain file name.
        """
        _check_name(name)
        return self._refits / name

    def write_profiles(self, profiles: Mapping[str, ProfileFile]) -> None:
        """Write the profiles of the front, by their names without `.yaml`.

        Raises:
            ValueError: a name that is not a plain file name.
        """
        for name in profiles:
            _check_name(name)
        self._profiles.mkdir(exist_ok=True)
        for name, profile in profiles.items():
            write_profile(self._profiles / f"{name}.yaml", profile)


def _with_refit(point: Point, before: Point | None) -> Point:
    if before is None or point.refit is not None or before.profile != point.profile:
        return point
    return point.model_copy(update={"refit": before.refit})


def file_name(budget: str) -> str:
    """A budget's name as the name of its profile file and of its folder of refitted levels."""
    return budget.replace(", ", "_").replace(" ", "-")


def _is_own_profile(path: Path) -> bool:
    """Whether a search wrote this profile: its file has the name of the budget that stands in it."""
    if kind_of(path) != "a file":
        return False
    try:
        record = check_version(path, read_yaml(path))
    except ValueError:
        return False
    return isinstance(budget := record.get("budget"), str) and path.stem == file_name(budget)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"profile name {name!r} is no plain file name; use letters, digits and ._+=,-")


def _versioned(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION, **record}


def _read(path: Path) -> dict[str, Any] | None:
    return _content(path, read_json(path)) if path.exists() else None


def _content(path: Path, record: Any) -> dict[str, Any]:
    found = check_version(path, record)
    del found["format_version"]
    return found
