"""Access to the refitted levels of a run's points, which lie in the folder of the run."""

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
    """Return everything that decides the weights of one profile's refitted levels.

    Args:
        assembly: objects of the run.
        assignment: label of each layer by path.
    """
    return assembly.recipe | {"refit": REVISION, "assignment": dict(assignment)}


def open_refit(folder: Path, recipe: Mapping[str, Any]) -> LevelDatabase:
    """Open the refitted levels in `folder`, which may not be complete yet; delete levels of another recipe first."""
    manifest = folder / "manifest.json"
    if manifest.exists() and read_json(manifest).get("fingerprint") != digest(dict(recipe)):
        for file in database_files(folder):
            file.unlink()
    return LevelDatabase(folder, recipe)


def refit_folder(run: Path, budget: str) -> Path:
    """Return the folder of the refitted levels of the point with this budget."""
    return RunFolder(run).refit(file_name(budget))


def kept_refit(run: Path, units: Mapping[str, str]) -> LevelDatabase | None:
    """Open the refitted levels of a profile of the run's front, if its refit was kept.

    Args:
        run: folder of the run.
        units: labels of the profile by unit name, as `Space.describe` returns them.

    Returns:
        The refitted levels, or None if the front has no such profile with a kept refit.

    Raises:
        FileNotFoundError: the refitted levels are missing or are not those that the front names.
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
            "build them again with `paretopress refit`"
        )
    return LevelDatabase(folder, manifest["recipe"])
