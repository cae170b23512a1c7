"""Scores of levels and their files: one `SCORE.json` per score, with the fingerprints of what decides it.

A score lies in the `sensitivities` folder of the run that made it; runs beside that one take it from there.
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
    """One score and what it cost.

    Attributes:
        score: name of the score.
        sensitivity: the score of every level of every unit.
        tokens: calibration tokens times the profiles that ran on them; the teacher is one.
        seconds: time that measuring it took.
        reused: whether all of it was measured before.
        levels, units: Spearman's rank correlation with measured changes of fitness; None where unknown.
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
    """A score of `proxies.py`: that in `folder` or beside it if it fits, else made now and saved.

    Args:
        name: name of the score.
        assembly: a run whose levels are built.
        folder: folder of the run's scores; made if it is missing.
        tokens: about how many calibration tokens; whole micro-batches are taken.
        listen: told when it is made.

    Raises:
        ValueError: the score has no value for some unit, or the folder's own file is damaged.
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
    """Whole micro-batches of calibration sequences (N, T), about as many tokens."""
    rows = assembly.data["calibration"].tokens
    size = assembly.runner.micro_batch
    wanted = min(-(-tokens // assembly.config.data.length), len(rows))
    return rows[: max(wanted // size, 1) * size]


def score_settings(name: str, assembly: Assembly) -> dict[str, Any]:
    """What decides any score, as JSON values; those that read text or have a base add these."""
    units = [[unit.name, unit.modules, list(unit.index)] for unit in assembly.space.units]
    return {
        "score": name,
        "revision": REVISION,
        "model": assembly.checkpoint.fingerprint,
        "levels": assembly.database.fingerprint,
        "units": digest(units),
    }


def stored_score(folder: Path, settings: Mapping[str, Any]) -> Scored | None:
    """The score made with these settings, from its file in `folder`, else from a run beside and then copied.

    Raises:
        ValueError: the file in `folder` is damaged; damaged ones beside are passed over.
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
    """Write the file that `stored_score` reads."""
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
    """The score in a file if it was made with the same settings.

    Raises:
        ValueError: the file is damaged.
    """
    if not file.exists():
        return None
    record = check_version(file, read_json(file))
    if record.get("settings") != settings:
        return None
    sensitivity = Sensitivity.from_json(record["sensitivity"])
    return Scored(str(settings["score"]), sensitivity, record["tokens"], record["seconds"], reused=True)
