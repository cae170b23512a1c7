"""Budgets in users' units, turned into exact limits on costs."""

import math

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .space import Space


class BudgetConfig(BaseModel):
    """What one point of the front may cost; every figure given holds at once, the first is the front's axis.

    Attributes:
        bits: stored bits per linear weight, scales, zero points and masks included.
        bytes: bytes of the whole model in the space's format; a number, or text such as `4.2GB`.
        sparsity: fraction of the linear weights that is zero or dropped, at least.
        kept: fraction of the linear weights that remains, at most.
        macs: multiply-accumulates per token in linear layers, a fraction of the dense model's, at most.
        dropped: number of branches (or blocks) removed, at least.
        latency: microseconds per token by the latency table.
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
            raise ValueError("`sparsity` and `kept` say the same; give one of them")
        return self

    @property
    def name(self) -> str:
        """Short name, for example `bits 3.25` or `dropped 6, macs 0.8`."""
        figures = self.model_dump(exclude_none=True)
        return ", ".join(
            f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in figures.items()
        )

    def limits(self, space: Space) -> dict[str, int]:
        """The exact limits that this budget means in `space`, the axis first, those of every budget last.

        Raises:
            ValueError: no profile of the space reaches it; the message gives the reachable range.
        """
        limits: dict[str, int] = {}
        for key, value in self.model_dump(exclude_none=True).items():
            kind, limit = _limit(key, value, space)
            limits[kind] = min(limit, limits.get(kind, limit))
        limits |= space.always
        _check(self.name, limits, space)
        return limits


def in_units(kind: str, cost: int, space: Space) -> float:
    """A cost in the unit that budgets of its kind are given in.

    Bits per linear weight, bytes, fraction kept, multiply-accumulates as a fraction, branches, microseconds.
    """
    if kind in ("bits", "parameters", "macs"):
        return cost / space.weights
    return cost / 1000 if kind == "latency" else float(cost)


def _limit(key: str, value: float | int | str, space: Space) -> tuple[str, int]:
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
    """Bytes from a number or from text with a unit: B, KB, MB, GB (powers of 1000), KiB, MiB, GiB (of 1024).

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
