"""The folder with the files of a run.

Only one process at a time may write the files. A search continues only if its configuration fits the stored one.

| file | content |
| --- | --- |
| config.yaml, environment.json | resolved configuration; versions, hardware, fingerprints, seed |
| journal.jsonl | every evaluation (`evaluators/journal/journal.py`) |
| checkpoint.json | state of the study, from which a search continues |
| front.json, profiles/*.yaml, report.html | the result of the search |
| refits/BUDGET/ | the refitted levels of one point, built for its profile |
| scores/MODEL.json | the scores of a model on tasks |
| .lock | host and process id of the process that works on the run; empty if there is none |
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
"""Names that the folder of a run may hold before its configuration is stored."""


class RunFolder:
    """The files of one run, each written atomically and with a `format_version`.

    Any process may read. A process writes only inside `with folder:`, which creates the folder, locks out every other
    process, and refuses a folder that does not belong to a run.

    Args:
        path: path of the folder, which need not exist yet.

    Raises:
        NotADirectoryError: the path is that of a file.
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
        """Create the folder and lock it.

        Raises:
            FileExistsError: the folder does not belong to a run, or the name of one of the run's files or folders is
                taken by something of another kind, for example a link.
            BlockingIOError: another process works on this run, or a process on another host did and has not
                released the lock.
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
        """Refuse a folder that is neither empty nor that of a run.

        Raises:
            FileExistsError: the folder does not belong to a run; the message says why.
        """
        if (reason := self._foreign()) is not None:
            raise FileExistsError(
                f"{self.path} is not a run folder: {reason}; give --run a new folder, an empty one or a run folder"
            )

    def _foreign(self) -> str | None:
        """Return why the folder does not belong to a run; None if it does, is empty or does not exist."""
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
        """Tell whether the folder belongs to a run that stopped before its configuration was stored."""
        names = {path.name for path in self.path.iterdir() if not is_leftover(path)}
        profiles = self._profiles.iterdir() if self._profiles.is_dir() else ()
        return names <= _BEGUN and self._lock.is_own() and all(map(is_leftover, profiles))

    def _check_own(self) -> None:
        """Refuse anything but regular files and folders under the names of the run's files and folders."""
        for path in (self._config, *self._files, self._lock.path):
            if (found := kind_of(path)) not in (None, "a file"):
                raise FileExistsError(f"{path} is {found}, and a run needs a file there; move it away")
        for name in ("profiles", "refits", SCORES, "sensitivities", "inputs"):
            folder = self.path / name
            if (found := kind_of(folder)) not in (None, "a folder"):
                raise FileExistsError(f"{folder} is {found}, and a run needs a folder there; move it away")

    def begin_anew(self, config: Mapping[str, Any]) -> None:
        """Store the configuration of a search that starts over, and delete the files of earlier searches.

        Scores of levels (`sensitivities/`), inputs of `submit` and files that the program did not write stay.

        Raises:
            PermissionError: one of the files may not be deleted; in this case no file was deleted.
        """
        old = self._results()
        check_removable(old)
        for path in old:
            path.unlink()
        for folder in (*self._refit_folders(), self._refits, self._scores):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        # The old configuration stays until the new one replaces it, because only a folder with one counts as a run's.
        write_yaml(self._config, _versioned(config))

    def _results(self) -> list[Path]:
        """Return the files in the folder that searches, refits and task scores wrote."""
        profiles = [path for path in sorted(self._profiles.glob("*.yaml")) if _is_own_profile(path)]
        levels = [file for folder in self._refit_folders() for file in database_files(folder)]
        return [*(path for path in self._files if path.exists()), *profiles, *levels, *self.task_scores()]

    def task_scores(self) -> list[Path]:
        """Return the files with the scores of models on tasks, sorted by path."""
        return [path for path in sorted(self._scores.glob("*.json")) if is_own(path, _SCORE)]

    def _refit_folders(self) -> list[Path]:
        return [path for path in sorted(self._refits.glob("*")) if kind_of(path) == "a folder"]

    def settle_config(self, config: Mapping[str, Any], harmless: Collection[str] = ()) -> None:
        """Store the resolved configuration of a new run, or compare it with the stored one.

        Args:
            config: configuration as JSON values (`model_dump(mode="json")`).
            harmless: dotted keys that may change between sessions of one run; a key includes all keys below it.
                If only these differ, the new configuration replaces the stored one.

        Raises:
            ValueError: other keys differ; the message names each of them with both values.
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
                "undo the change, choose another --run folder, or start over with --fresh"
            )
        if stored is None or changed:
            write_yaml(self._config, _versioned(config))

    def read_config(self) -> dict[str, Any] | None:
        """Return the stored configuration, or None if there is none yet."""
        return _content(self._config, read_yaml(self._config)) if self._config.exists() else None

    def write_environment(self, record: Mapping[str, Any]) -> None:
        """Store versions, hardware, fingerprints and seed."""
        write_json(self._environment, _versioned(record))

    def read_environment(self) -> dict[str, Any] | None:
        """Return versions, hardware, fingerprints and seed, or None if they are not stored yet."""
        return _read(self._environment)

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the stored state of the study."""
        # Indented output would not use the encoder written in C, which is ten times as fast.
        write_atomic(self._checkpoint, json.dumps(_versioned(state), ensure_ascii=False) + "\n")

    def read_checkpoint(self) -> dict[str, Any] | None:
        """Return the stored state of the study, or None if there is none."""
        return _read(self._checkpoint)

    def write_front(self, front: Front) -> Front:
        """Replace the stored front. A point whose budget has the same profile as before keeps its refit.

        Returns:
            The front as it was stored, with the refits that were kept.
        """
        known = self._refitted()
        stored = front.with_points([_with_refit(point, known.get(point.budget)) for point in front.points])
        write_json(self._front, _versioned(stored.record()))
        return stored

    def _refitted(self) -> dict[str, Point]:
        """Return the refitted points of the stored front by budget; none if the file is damaged."""
        try:
            front = self.read_front()
        except ValueError:
            return {}
        return {point.budget: point for point in (front.points if front else ()) if point.refit is not None}

    def read_front(self) -> Front | None:
        """Return the stored front, or None if there is none yet.

        Raises:
            ValueError: `front.json` is damaged, or a newer release wrote it.
        """
        record = _read(self._front)
        return None if record is None else Front.of(record, str(self._front))

    def refit(self, name: str) -> Path:
        """Return the folder of a point's refitted levels.

        Args:
            name: name of the point's budget as `file_name` gives it.

        Raises:
            ValueError: the name is not a plain file name.
        """
        _check_name(name)
        return self._refits / name

    def write_profiles(self, profiles: Mapping[str, ProfileFile]) -> None:
        """Write the profile files of the front.

        Args:
            profiles: content of each profile file, by the name of the file without `.yaml`.

        Raises:
            ValueError: one of the names is not a plain file name.
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
    """Return the name, made from a budget's name, of its profile file and of its folder of refitted levels."""
    return budget.replace(", ", "_").replace(" ", "-")


def _is_own_profile(path: Path) -> bool:
    """Tell whether a search wrote this profile file, which is then named after the budget that the file contains."""
    if kind_of(path) != "a file":
        return False
    try:
        record = check_version(path, read_yaml(path))
    except ValueError:
        return False
    return isinstance(budget := record.get("budget"), str) and path.stem == file_name(budget)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"profile name {name!r} is not a plain file name; use letters, digits and ._+=,-")


def _versioned(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION, **record}


def _read(path: Path) -> dict[str, Any] | None:
    return _content(path, read_json(path)) if path.exists() else None


def _content(path: Path, record: Any) -> dict[str, Any]:
    found = check_version(path, record)
    del found["format_version"]
    return found
