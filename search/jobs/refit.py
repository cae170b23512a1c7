"""Refit of the points of a finished run.

A refit builds the levels of one profile again, with the inputs that each layer gets from the compressed layers before
it. It is kept if it is significantly better on validation documents. Held-out figures are only for the report.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...evaluators.levels.refitting import refit_database, refit_labels
from ...spaces.storage.database import LevelDatabase
from ...spaces.storage.files import digest
from ..folder.front import Front, Point, Refit
from ..folder.runfolder import RunFolder, file_name
from ..folder.settings import differences
from ..run.assembly import Assembly, assemble
from ..run.configuration import load_config
from ..run.event import Event, Listener
from ..study.selection import FEWEST_DOCUMENTS, LEVEL, document_means, sign_flip
from .front_making import fingerprints, profile_of
from .measure import everything
from .outcome import interval
from .refitted import open_refit, refit_folder, refit_recipe


def refit(
    run: Path,
    budget: str | None = None,
    *,
    databases: Path | None = None,
    listen: Listener = lambda event: None,
    report: Callable[[Path], object] = lambda folder: None,
) -> Front:
    """Refit one point of a run's front, or all points, except those that are refitted already.

    Every refitted point gets a record `refit` with four parts: whether the refit is `kept`, its `validation_gain` in
    nats per token, its `p_value` (one-sided paired sign-flip test over documents, times the number of points of the
    front) and its held-out figures. If a refit is kept, its weights are used from then on to evaluate and export the
    point.

    Args:
        run: folder of the run.
        budget: name of the budget to refit, or the last word of the name; by default all budgets.
        databases: folder of the level databases; by default `databases/` beside the run.
        listen: function that gets each event of progress.
        report: function that is called with the folder of the run after each point, to write the report again.

    Returns:
        The front of the run with the refits.

    Raises:
        FileNotFoundError: the run has no front yet, or the level database has no levels.
        ValueError: there is no such budget or no layer to refit, or model, text, libraries or hardware are not those
            of the run.
        BlockingIOError: another process works on this run.
    """
    if (front := RunFolder(run).read_front()) is None:
        raise FileNotFoundError(f"{run} has no front yet; let the search finish, then refit")
    with RunFolder(run) as folder:
        front = folder.read_front() or front
        points = front.points if budget is None else [front.find(budget)]
        listen(Event("open model and text", 0))
        assembly = assemble(load_config(run / "config.yaml"), databases or run.parent / "databases")
        _refuse_other(assembly, front, run)
        wanted = [point for point in points if refit_labels(_assignment(assembly, point))]
        if not wanted:
            raise ValueError(f"no layer of {run} is compressed at this budget; there is nothing to refit")
        left = [point for point in wanted if not _done(assembly, run, point)]
        originals = _originals(assembly, left)
        for point, original in zip(left, originals, strict=True):
            found = _refit(assembly, run, point, original, len(front.points), listen)
            refitted = point.model_copy(update={"refit": found})
            front = front.with_points([refitted if p.budget == point.budget else p for p in front.points])
            folder.write_front(front)
            folder.write_profiles({file_name(p.budget): profile_of(p, front) for p in front.points})
            report(run)
    return front


def _refuse_other(assembly: Assembly, front: Front, run: Path) -> None:
    """Refuse to refit a run whose fingerprints have changed or whose levels are gone."""
    now = fingerprints(assembly, assembly.evaluator().fingerprint)
    if changed := differences(front.fingerprints, now):
        raise ValueError(
            f"run {run} was made with another {', another '.join(changed)}: a refit cannot be compared with it; "
            "restore what changed"
        )
    if assembly.labels and not assembly.database.bytes:
        raise FileNotFoundError(
            f"{assembly.database.path} holds no levels; build them again with `paretopress build`"
        )


def _assignment(assembly: Assembly, point: Point) -> dict[str, str]:
    return assembly.space.assignment(assembly.space.parse(point.profile))


def _done(assembly: Assembly, run: Path, point: Point) -> bool:
    """Tell whether the point has the result of this refit, and all its refitted levels still exist."""
    assignment, folder = _assignment(assembly, point), refit_folder(run, point.budget)
    recipe = refit_recipe(assembly, assignment)
    if point.refit is None or point.refit.database != digest(recipe) or not folder.exists():
        return False
    return set(refit_labels(assignment)) <= set(open_refit(folder, recipe).errors())


def _originals(assembly: Assembly, points: Sequence[Point]) -> list[list[float]]:
    """Return the validation values of each point with its original levels, one value per sequence."""
    assignments = [_assignment(assembly, point) for point in points]
    if not assignments:
        return []
    values, _ = assembly.evaluator().measure(assignments, everything(assembly, "validation"))
    return values


def _refit(
    assembly: Assembly,
    run: Path,
    point: Point,
    original: Sequence[float],
    points: int,
    listen: Listener,
) -> Refit:
    """Build the refitted levels of one point and measure them.

    Args:
        assembly: objects of the run.
        run: folder of the run.
        point: the point to refit.
        original: validation values of the point with its original levels, one per sequence.
        points: number of points of the front.
        listen: function that gets each event of progress.
    """
    assignment = _assignment(assembly, point)
    database = open_refit(refit_folder(run, point.budget), refit_recipe(assembly, assignment))
    _build(assembly, database, assignment, point.budget, listen)
    evaluator = assembly.evaluator(database)
    ((values,), _) = evaluator.measure([assignment], everything(assembly, "validation"))
    ((heldout,), (losses,)) = evaluator.measure([assignment], everything(assembly, "heldout"))
    documents = assembly.data["validation"].documents.tolist()
    found = verdict(original, values, documents, assembly.config.seed, points)
    figures: dict[str, Any] = {"heldout_kl": None, "heldout_perplexity": None, "heldout_interval": None}
    if not np.isfinite([*heldout, *losses]).all():
        found["kept"] = False
    else:
        figures = {
            "heldout_kl": math.fsum(heldout) / len(heldout),
            "heldout_perplexity": math.exp(math.fsum(losses) / len(losses)),
            "heldout_interval": interval(heldout, assembly.data["heldout"].documents, assembly.config.seed),
        }
    return Refit(database=database.fingerprint, **found, **figures)


def verdict(
    original: Sequence[float], refitted: Sequence[float], documents: Sequence[int], seed: int, points: int
) -> dict[str, Any]:
    """Decide whether a refit is kept, which requires that it is significantly better.

    The significance level of 5 % holds for all points of the front together.

    Args:
        original: validation value of each sequence with the original levels.
        refitted: validation value of each sequence with the refitted levels.
        documents: number of the document that each sequence comes from; with fewer than 20 documents there is no test,
            and the refit is not kept.
        seed: seed of the random sign vectors of the test.
        points: number of points of the front, which multiplies the p-value, so that the order of refits is irrelevant.

    Returns:
        The fields `kept`, `validation_gain` and `p_value` of the result.
    """
    if not np.isfinite([*original, *refitted]).all():
        return {"kept": False, "validation_gain": None, "p_value": None}
    gains = document_means(original, documents) - document_means(refitted, documents)
    found: dict[str, Any] = {"kept": False, "validation_gain": float(gains.mean()), "p_value": None}
    if len(gains) >= FEWEST_DOCUMENTS:
        found["p_value"] = min(1.0, points * sign_flip(gains, seed))
        found["kept"] = found["p_value"] <= LEVEL
    return found


def _build(
    assembly: Assembly,
    database: LevelDatabase,
    assignment: Mapping[str, str],
    budget: str,
    listen: Listener,
) -> None:
    """Build the refitted levels of a profile, with an event for each block."""
    total, done = len(assembly.structure.blocks), 0

    def progress(part: str) -> None:
        nonlocal done
        done += 1
        listen(Event(f"refit {budget}", done, total, part))

    database.verify()
    refit_database(
        database,
        assignment,
        assembly.runner,
        assembly.builder_tokens,
        assembly.config.builder,
        progress=progress,
    )
