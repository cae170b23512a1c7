"""Budgets in the units that users write, and their conversion to exact limits on costs."""

import math

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .space import Space


class BudgetConfig(BaseModel):
    """A budget: what the profile at one point of the front may cost.

    All figures that are given hold at once. The cost kind of the first of them, in the order below, is the axis of the
    front.

    Attributes:
        bits: largest number of stored bits per linear weight, including scales, zero points and masks.
        bytes: largest size of the whole model in the space's format, as a number of bytes or a text such as `4.2GB`.
        sparsity: smallest fraction of the linear weights that are zero or dropped.
        kept: largest fraction of the linear weights that are neither zero nor dropped.
        macs: largest number of multiply-accumulates per token in linear layers, as a fraction of the dense model's.
        dropped: smallest number of branches (or blocks) that are dropped.
        latency: largest latency by the latency table, in microseconds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    bits: float | None = Field(default=None, gt=0)
    bytes: int | str | None = None
    sparsity: float | None = Field(default=None, ge=0, lt=1)
    kept: float | None = Field(default=None, gt=0, le=1)
    macs: float | None = Field(default=None, gt=0, le=1)
    dropped: int | None = Field(default=None, ge=0)
    latency: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _names_something(self) -> "BudgetConfig":
        if not self.model_fields_set:
            raise ValueError("a budget needs a figure, for example `bits: 3.25` or `bytes: 4.2GB`")
        if self.sparsity is not None and self.kept is not None:
            raise ValueError("`sparsity` and `kept` limit the same cost; give only one of them")
        return self

    @property
    def name(self) -> str:
        """The name of the budget, for example `bits 3.25` or `macs 0.8, dropped 6`."""
        figures = self.model_dump(exclude_none=True)
        return ", ".join(
            f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in figures.items()
        )

    def limits(self, space: Space) -> dict[str, int]:
        """Return the exact limits that this budget sets in `space`.

        The limit of the axis comes first; the limits that hold for every budget come last.

        Raises:
            ValueError: the space lacks a cost kind of the budget, a limit is below the cheapest profile (the message
                gives the range of costs), or no profile that meets all limits was found.
        """
        limits: dict[str, int] = {}
        for key, value in self.model_dump(exclude_none=True).items():
            kind, limit = _limit(key, value, space)
            limits[kind] = min(limit, limits.get(kind, limit))
        limits |= space.always
        _check(self.name, limits, space)
        return limits


def in_units(kind: str, cost: int, space: Space) -> float:
    """Return a cost in the unit of the cost kind that users see.

    The units are bits per linear weight (`bits`), bytes, kept fraction of the weights (`parameters`), fraction of the
    dense model's multiply-accumulates (`macs`), number of kept branches, and microseconds (`latency`).
    """
    if kind in ("bits", "parameters", "macs"):
        return cost / space.weights
    return cost / 1000 if kind == "latency" else float(cost)


def _limit(key: str, value: float | int | str, space: Space) -> tuple[str, int]:
    """Return the cost kind and the exact limit that one figure of a budget sets.

    The tolerance of 1e-6 corrects for rounding in the product of a decimal fraction and the number of weights.
    """
    if key == "bytes":
        return "bytes", parse_bytes(value)
    number = float(value)
    if key == "bits":
        return "bits", math.floor(number * space.weights + 1e-6)
    if key == "sparsity":
        return "parameters", space.weights - math.ceil(number * space.weights - 1e-6)
    if key == "kept":
        return "parameters", math.floor(number * space.weights + 1e-6)
    if key == "macs":
        return "macs", math.floor(number * space.weights + 1e-6)
    if key == "dropped":
        return "branches", sum(unit.droppable for unit in space.units) - int(number)
    return "latency", math.floor(number * 1000)


def parse_bytes(value: float | int | str) -> int:
    """Return the number of bytes that a number or a text with a unit gives, rounded down.

    The units are B, KB, MB and GB (powers of 1000) and KiB, MiB and GiB (powers of 1024).

    Raises:
        ValueError: the text is not a number with one of these units.
    """
    text = str(value).strip()
    units = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9, "B": 1, "": 1}
    for unit, factor in units.items():
        if text.lower().endswith(unit.lower()):
            try:
                return math.floor(float(text[: len(text) - len(unit)]) * factor)
            except (ValueError, OverflowError):
                break
    raise ValueError(f"size {text!r} is not a number with a unit; write for example 4.2GB or 900MiB")


def _check(name: str, limits: dict[str, int], space: Space) -> None:
    """Raise ValueError if the limits of the budget called `name` cannot be met, one by one or all at once."""
    for kind, limit in limits.items():
        if kind not in space.kinds:
            has = ", ".join(space.kinds)
            raise ValueError(
                f"budget {name!r} needs the cost {kind!r}, which this space lacks (it has {has})"
            )
        low = space.cost(space.extreme(kind), kind)
        if limit < low:
            high = space.cost(space.extreme(kind, largest=True), kind)
            first, last = (f"{in_units(kind, cost, space):.6g}" for cost in (low, high))
            raise ValueError(
                f"budget {name!r} is below the cheapest profile; {kind} can be {first} to {last}: "
                "raise the budget or add a cheaper level"
            )
    space.cheapest(limits)
