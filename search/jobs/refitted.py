"""The refitted levels of a run's points: where they lie, what decides them, which of them are used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...evaluators.levels.refitting import REVISION
from ...spaces.storage.database import LevelDatabase
from ...spaces.storage.files import digest, read_json
from ...spaces.storage.ownership import database_files
from ..folder.runfolder import RunFolder, file_name
from ..run.assembly import Assembly


def refit_recipe(assembly: Assembly, assignment: Mapping[str, str]) -> dict[str, Any]:
    """What decides the values of one profile's refitted levels."""
    return assembly.recipe | {"refit": REVISION, "assignment": dict(assignment)}


def open_refit(folder: Path, recipe: Mapping[str, Any]) -> LevelDatabase:
    """The refitted levels in `folder`, perhaps unfinished; levels of another recipe are deleted."""
    manifest = folder / "manifest.json"
    if manifest.exists() and read_json(manifest).get("fingerprint") != digest(dict(recipe)):
        for file in database_files(folder):
            file.unlink()
    return LevelDatabase(folder, recipe)


def refit_folder(run: Path, budget: str) -> Path:
    """Where the refitted levels of a point lie."""
    return RunFolder(run).refit(file_name(budget))


def kept_refit(run: Path, units: Mapping[str, str]) -> LevelDatabase | None:
    """The levels that stand for a profile of the run's front; None if it was not refitted, or not kept.

    Args:
        run: the run's folder.
        units: unit name to label, as `Space.describe` gives it.

    Raises:
        FileNotFoundError: the front names refitted levels that are gone or were made anew.
    """
    front = RunFolder(run).read_front()
    point = front.kept_refit(units) if front else None
    if point is None or point.refit is None:
        return None
    folder = refit_folder(run, point.budget)
    manifest = read_json(folder / "manifest.json") if (folder / "manifest.json").exists() else {}
    if manifest.get("fingerprint") != point.refit.database:
        raise FileNotFoundError(
            f"{folder} does not hold the refitted levels of {point.budget}; "
            "make them again with `paretopress refit`"
        )
    return LevelDatabase(folder, manifest["recipe"])
