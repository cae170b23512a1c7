"""Scores of levels and their files, one `SCORE.json` per score with the settings that the score depends on.

A score is saved in the folder `sensitivities` of the run that made it. Runs in the same parent folder reuse it.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...spaces.storage.files import FORMAT_VERSION, check_version, digest, read_json, write_json
from ..allocation.sensitivity import Sensitivity
from ..run.assembly import Assembly
from ..run.event import Event, Listener
from .proxies import READS_TEXT, REVISION, proxy_errors


@dataclass(frozen=True)
class Scored:
    """One score of all levels, with the tokens and the time that making it took.

    Attributes:
        score: name of the score.
        sensitivity: score of every level of every unit.
        tokens: number of calibration tokens times the number of models that ran on them, the teacher included; 0 for a
            score that reads no text.
        seconds: time that making the score took, in seconds.
        reused: whether the score was read from a file or all its values were known before.
        levels: Spearman's rank correlation with measured changes of fitness over all levels; None where unknown.
        units: Spearman's rank correlation with measured changes of fitness over units; None where unknown.
    """

    score: str
    sensitivity: Sensitivity
    tokens: int
    seconds: float
    reused: bool = False
    levels: float | None = None
    units: float | None = None


def stored_proxy(
    name: str,
    assembly: Assembly,
    folder: Path,
    tokens: int,
    listen: Listener = lambda event: None,
) -> Scored:
    """Return a score of `proxies.py` from a file of this run or a neighbouring one, or else make and save it.

    Args:
        name: name of the score.
        assembly: assembled run whose levels are built.
        folder: folder of the run's scores, which is created if it is missing.
        tokens: approximate number of calibration tokens; whole micro-batches are used.
        listen: listener that is told when the score is made.

    Raises:
        ValueError: the score has no value for some level, or the file in `folder` is damaged.
    """
    text = _text(assembly, tokens)
    settings = score_settings(name, assembly)
    if name in READS_TEXT:
        calibration = assembly.data["calibration"].fingerprint
        settings |= {"text": calibration, "tokens": text.size, "seed": assembly.config.seed}
    if (found := stored_score(folder, settings)) is not None:
        return found
    listen(Event(f"score {name}", 0, None))
    began = time.perf_counter()
    sensitivity = Sensitivity({}, text.size, 0.0, proxy_errors(name, assembly, text))
    seconds = round(time.perf_counter() - began, 3)
    scored = Scored(name, sensitivity, text.size if name in READS_TEXT else 0, seconds)
    store_score(folder, settings, scored)
    listen(Event(f"score {name}", 1, 1))
    return scored


def _text(assembly: Assembly, tokens: int) -> np.ndarray:
    """Return the first calibration sequences (N, T), about `tokens` tokens in whole micro-batches, at least one."""
    rows = assembly.data["calibration"].tokens
    size = assembly.runner.micro_batch
    wanted = min(-(-tokens // assembly.config.data.length), len(rows))
    return rows[: max(wanted // size, 1) * size]


def score_settings(name: str, assembly: Assembly) -> dict[str, Any]:
    """Return the settings that every score depends on, as JSON values: its name, the model, the levels and the units.

    Callers add the calibration text for scores that read text, and the base profile for the measured score.
    """
    units = [[unit.name, unit.modules, list(unit.index)] for unit in assembly.space.units]
    return {
        "score": name,
        "revision": REVISION,
        "model": assembly.checkpoint.fingerprint,
        "levels": assembly.database.fingerprint,
        "units": digest(units),
    }


def stored_score(folder: Path, settings: Mapping[str, Any]) -> Scored | None:
    """Return the saved score that was made with these settings, or None.

    The score is looked for in `folder`, and then in the folders of runs in the same parent folder. A score found there
    is copied into `folder`. Damaged files of other runs are skipped.

    Raises:
        ValueError: the file in `folder` is damaged.
    """
    own = folder / f"{settings['score']}.json"
    if (found := _read(own, settings)) is not None:
        return found
    for file in sorted(folder.parent.parent.glob(f"*/{folder.name}/{own.name}")):
        try:
            found = _read(file, settings)
        except ValueError:
            continue
        if found is not None:
            store_score(folder, settings, found)
            return found
    return None


def store_score(folder: Path, settings: Mapping[str, Any], scored: Scored) -> None:
    """Write a score and its settings to the file that `stored_score` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "format_version": FORMAT_VERSION,
        "settings": dict(settings),
        "tokens": scored.tokens,
        "seconds": scored.seconds,
        "sensitivity": scored.sensitivity.to_json(),
    }
    write_json(folder / f"{scored.score}.json", record)


def _read(file: Path, settings: Mapping[str, Any]) -> Scored | None:
    """Return the score in a file, or None if there is no file or its settings differ.

    Raises:
        ValueError: the file of the score is damaged.
    """
    if not file.exists():
        return None
    record = check_version(file, read_json(file))
    if record.get("settings") != settings:
        return None
    sensitivity = Sensitivity.from_json(record["sensitivity"])
    return Scored(str(settings["score"]), sensitivity, record["tokens"], record["seconds"], reused=True)
