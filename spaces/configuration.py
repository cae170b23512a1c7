"""The part of a configuration that defines a space: levels, drops, and which layers are searched."""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from .levels.ggml.ggml_types import GGML_TYPES
from .levels.labels import Unstructured, parse_label


class UnitsConfig(BaseModel):
    """The layers that are searched, and bounds on their levels.

    A pattern is a regular expression that is searched for in the module path of a layer.

    Attributes:
        exclude: patterns of the layers that stay dense.
        pin: maps a pattern to the one label that matching layers take; the first match counts.
        min: maps a pattern to the label with the fewest stored bits that matching layers may take.
        max: maps a pattern to the label with the most stored bits that matching layers may take.
        tie: `vllm` gives q/k/v one level and gate/up one level, as fused serving kernels need; `none` ties nothing.
        ends: whether embeddings and head are units too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    exclude: tuple[str, ...] = ()
    pin: dict[str, str] = Field(default_factory=dict)
    min: dict[str, str] = Field(default_factory=dict)
    max: dict[str, str] = Field(default_factory=dict)
    tie: Literal["none", "vllm"] = "none"
    ends: bool = False


class LadderConfig(BaseModel):
    """EvoPress's sparsity ladder: levels that are a fixed number of zeros apart, the same for all layer shapes.

    Attributes:
        base: percentage of zeros at the middle level.
        step: number of zeros from one level to the next.
        levels: largest number of levels above the middle level, and below it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    base: float = Field(ge=0, lt=100)
    step: int = Field(default=1_000_000, gt=0)
    levels: int = Field(default=8, ge=1)

    def labels(self, numel: int) -> tuple[str, ...]:
        """Return the labels of the ladder for a layer of `numel` weights, from fewest to most zeros."""
        middle = Unstructured(self.base / 100).zeros(numel)
        down = min(middle // self.step, self.levels)
        up = min((numel - middle) // self.step, self.levels)
        offsets = (i * self.step for i in range(-down, up + 1))
        return tuple(f"s{self.base:g}" + (f"{offset:+d}" if offset else "") for offset in offsets)


class MinimumConfig(BaseModel):
    """A minimum count: in every profile at least `count` units take the level `label`.

    Attributes:
        count: smallest number of units; a fused group is one unit, and units under a dropped branch do not count.
        label: label of the level; `keep` counts the branches or blocks that are kept.
        units: regular expression that is searched for in unit names, such as module paths or `blocks.3.attention`;
            an empty one matches all units.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    count: PositiveInt
    label: str
    units: str = ""

    @field_validator("units")
    @classmethod
    def _compiles(cls, units: str) -> str:
        try:
            re.compile(units)
        except re.error as error:
            raise ValueError(
                f"units pattern {units!r} is not a regular expression ({error}); correct it"
            ) from error
        return units


class SpaceConfig(BaseModel):
    """The definition of a space: the levels of the layers, what may be dropped, and rules for every profile.

    Attributes:
        levels: labels of the levels that every searched layer may take, for example `w4g128`.
        ladder: EvoPress's sparsity ladder, in addition to `levels` or in their place.
        drop: whether attention and MLP branches, or whole blocks, may be removed.
        units: the layers that are searched, and bounds on their levels.
        at_least: minimum counts of units at a level, which hold in addition to every budget.
        format: the size rule behind the cost `bytes`: `packed`, `hf`, `compressed-tensors` or `gguf`.
        latency: path of a YAML file with microseconds per layer and level; adds the cost `latency` (nanoseconds).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    levels: tuple[str, ...] = ()
    ladder: LadderConfig | None = None
    drop: Literal["none", "branches", "blocks"] = "none"
    units: UnitsConfig = UnitsConfig()
    at_least: tuple[MinimumConfig, ...] = ()
    format: Literal["packed", "hf", "compressed-tensors", "gguf"] = "packed"
    latency: str | None = None

    @model_validator(mode="after")
    def _held_by_the_format(self) -> "SpaceConfig":
        if self.format != "gguf":
            return self
        given = (*self.levels, *self.units.pin.values())
        others = [label for label in given if label != "dense" and label not in GGML_TYPES]
        if others or self.ladder:
            for label in others:
                parse_label(label)
            which = f"level {others[0]!r}" if others else "a ladder's sparsity"
            raise ValueError(
                f"{which} is not a type of llama.cpp, which `format: gguf` requires; give levels such as q4_k, or "
                "another format"
            )
        if self.drop == "branches":
            raise ValueError(
                "`drop: branches` does not work with `format: gguf`, because a GGUF file keeps zeros for some branches "
                "that are dropped without their block, and budgets in bytes do not count them; give `drop: blocks`"
            )
        return self

    @field_validator("levels", mode="before")
    @classmethod
    def _quoted(cls, levels: object) -> object:
        if isinstance(levels, list | tuple) and (numbers := [n for n in levels if isinstance(n, int)]):
            raise ValueError(
                f"level {numbers[0]} is a number, and YAML reads 2:4 as 124; put the level in quotes"
            )
        return levels
