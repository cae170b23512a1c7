"""The Pareto front of a run as its folder keeps it: `front.json`, checked while it is read."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...spaces.storage.files import check_version, read_json

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Point:
    """One model: a point of the front or a baseline.

    Attributes:
        cost: in the front's cost unit.
        profile: unit name to label, units under a dropped branch left out.
        method: who proposed it.
        budget: name of the budget it was chosen for.
        bytes: stored size.
        fitness: value on calibration data.
        heldout_kl: nats per token against the dense model, on data that only the report uses.
        heldout_perplexity: on the same data.
        heldout_interval: confidence interval of `heldout_kl`.
        significant: whether it beats the uniform profile of its budget on validation data.
        p_value: of that test.
    """

    cost: float
    profile: Mapping[str, str]
    method: str
    budget: str
    bytes: float | None = None
    fitness: float | None = None
    heldout_kl: float | None = None
    heldout_perplexity: float | None = None
    heldout_interval: tuple[float, float] | None = None
    significant: bool | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Progress:
    """The incumbent of one budget after `tokens` tokens of search."""

    tokens: float
    fitness: float
    budget: str = ""


@dataclass(frozen=True)
class Look:
    """The best profile of one budget after `tokens` tokens of search, as shares of its uniform profile's values.

    Attributes:
        tokens: that had guided the search.
        budget: its name.
        calibration: share of uniform's fitness that is left on calibration text.
        validation: the same on validation text.
    """

    tokens: float
    budget: str
    calibration: float
    validation: float


@dataclass(frozen=True)
class Front:
    """What a run found and how.

    Attributes:
        model: the model as the user named it.
        cost_unit: unit of every point's cost.
        points: in order of cost.
        baselines: in order of cost, several methods mixed.
        refits: points that were refitted, with the refit's figures.
        dense: figures of the uncompressed model, `bytes` and `heldout_perplexity`.
        made: `evaluations`, `tokens`, `teacher_tokens`, `seconds` and `seed`.
        fingerprints: what was fingerprinted to its digest.
        progress: in order of tokens.
        looks: in order of tokens, those with all figures.
        stopped: the limit that ended the search, or ``.
        weights: unit name to its number of weights, where known.
    """

    model: str
    cost_unit: str
    points: tuple[Point, ...]
    baselines: tuple[Point, ...] = ()
    refits: tuple[Point, ...] = ()
    dense: Mapping[str, float] = field(default_factory=dict)
    made: Mapping[str, float] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    progress: tuple[Progress, ...] = ()
    looks: tuple[Look, ...] = ()
    stopped: str = ""
    weights: Mapping[str, int] = field(default_factory=dict)


def read_front(run: Path) -> Front:
    """The front in a run's folder.

    Raises:
        FileNotFoundError: the run has no front yet.
        ValueError: `front.json` is damaged or newer; the message names the field.
    """
    path = run / "front.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; finish the search of this run first")
    record = check_version(path, read_json(path), FORMAT_VERSION)
    try:
        return _front(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else f"is not a front: {error}"
        raise ValueError(f"{path} {reason}; let the search write it again") from error


def _front(record: Mapping[str, Any]) -> Front:
    progress = (
        Progress(_number(row["tokens"]), _number(row["fitness"]), _text(row.get("budget")))
        for row in record.get("progress") or ()
    )
    made = {name: record.get(name) for name in ("evaluations", "tokens", "teacher_tokens", "seconds", "seed")}
    return Front(
        model=str(record["model"]),
        cost_unit=str(record["cost_unit"]),
        points=_points(record["points"]),
        baselines=_points(record.get("baselines") or ()),
        refits=_points(_refit(row) for row in record["points"] if row.get("refit")),
        dense=_figures(record.get("dense") or {}),
        made=_figures(made),
        fingerprints={str(k): str(v) for k, v in (record.get("fingerprints") or {}).items()},
        progress=tuple(sorted(progress, key=lambda row: row.tokens)),
        looks=tuple(sorted(_looks(record.get("looks") or ()), key=lambda row: row.tokens)),
        stopped=_text(record.get("stopped")),
        weights={str(k): int(v) for k, v in (record.get("weights") or {}).items()},
    )


def _looks(rows: Any) -> Iterator[Look]:
    for row in rows:
        shares = row["calibration_of_uniform"], row["validation_of_uniform"]
        if None not in shares:
            yield Look(_number(row["tokens"]), _text(row["budget"]), *map(_number, shares))


def _points(rows: Any) -> tuple[Point, ...]:
    return tuple(sorted((_point(row) for row in rows), key=lambda point: point.cost))


def _refit(row: Mapping[str, Any]) -> dict[str, Any]:
    """A point's refit as a point of its own."""
    refit: dict[str, Any] = row["refit"]
    method = "refit" if refit["kept"] else "refit, not kept"
    names = ("budget", "cost", "bytes", "profile")
    return {name: row.get(name) for name in names} | refit | {"method": method, "significant": refit["kept"]}


def _point(row: Mapping[str, Any]) -> Point:
    numbers = ("bytes", "fitness", "heldout_kl", "heldout_perplexity", "p_value")
    interval = row.get("heldout_interval")
    significant = row.get("significant")
    return Point(
        cost=_number(row["cost"]),
        profile={str(name): str(label) for name, label in (row.get("profile") or {}).items()},
        method=_text(row.get("method")),
        budget=_text(row.get("budget")),
        heldout_interval=(_number(interval[0]), _number(interval[1])) if interval else None,
        significant=None if significant is None else bool(significant),
        **{name: _number(row[name]) for name in numbers if row.get(name) is not None},
    )


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): _number(value) for name, value in row.items() if value is not None}


def _text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    if isinstance(value, float) and math.isnan(value):
        raise ValueError("a figure is not a number (NaN)")
    return value
