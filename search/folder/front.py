"""Typed content of `front.json`, the result of a run.

The writer of the file, the table, the report and the exports all use these types.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from ...spaces.nearest import nearest


def _no_nan(value: float | None) -> float | None:
    if value is not None and math.isnan(value):
        raise ValueError("the figure is not a number (NaN)")
    return value


Number = Annotated[int | float, AfterValidator(_no_nan)]
Figure = Annotated[int | float | None, AfterValidator(_no_nan)]
"""A number, or None where the number is not known or was not finite."""


class _Record(BaseModel):
    """Base of all records. It keeps keys that another release wrote, and writes only keys that were given."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    def record(self) -> dict[str, Any]:
        """Return the content as JSON values."""
        return self.model_dump(exclude_unset=True)


class Refit(_Record):
    """Result of a refit, which builds the levels of one point again, for its profile only.

    Attributes:
        database: fingerprint of the refitted levels.
        kept: whether the point uses the refitted levels instead of the original ones.
        validation_gain: mean over validation documents of the original fitness minus the refitted fitness, in nats
            per token.
        p_value: p-value of the paired test against the original levels, corrected for the number of points.
        heldout_kl: mean fitness on held-out text; with the fitness `kl`, the divergence from the dense model in nats
            per token.
        heldout_perplexity: perplexity on held-out text.
        heldout_interval: lower and upper end of the 95 % interval of `heldout_kl`.
    """

    database: str = ""
    kept: bool
    validation_gain: Figure = None
    p_value: Figure = None
    heldout_kl: Figure = None
    heldout_perplexity: Figure = None
    heldout_interval: list[float] | None = None


class Point(_Record):
    """One compressed model, either a point of the front or a baseline.

    Attributes:
        budget: name of the budget that the profile was chosen for, for example `bits 3.25`.
        method: search method or baseline that proposed the profile, for example `frontier` or `uniform`.
        cost: cost of the profile in the front's unit.
        costs: exact cost of the profile by kind of cost, in the units that the space counts in.
        bytes: stored size of the model in bytes, embeddings and head included.
        fitness: fitness of the profile on the archive's calibration text; None if it was not measured there.
        heldout_kl: mean fitness on held-out text; with the fitness `kl`, the divergence from the dense model in nats
            per token.
        heldout_perplexity: perplexity on held-out text.
        heldout_interval: lower and upper end of the 95 % interval of `heldout_kl`.
        profile: label of every unit by unit name, without the units under a dropped branch.
        significant: whether the point is significantly better than the uniform profile of its budget on validation
            text; None for baselines and where there are too few documents for a claim.
        p_value: p-value of that test, corrected for all tests of the run.
        refit: result of the point's refit, or None if there was no refit.
    """

    budget: str = ""
    method: str = ""
    cost: Number = 0
    costs: dict[str, int | float] = {}
    bytes: Figure = None
    fitness: Figure = None
    heldout_kl: Figure = None
    heldout_perplexity: Figure = None
    heldout_interval: list[float] | None = None
    profile: dict[str, str] = {}
    significant: bool | None = None
    p_value: Figure = None
    refit: Refit | None = None

    def heldout(self) -> dict[str, Figure]:
        """Return the held-out `kl` and `perplexity`, which are those of the refitted levels if the refit was kept."""
        source = self.refit if self.refit is not None and self.refit.kept else self
        return {"kl": source.heldout_kl, "perplexity": source.heldout_perplexity}


class Incumbent(_Record):
    """The best profile of one budget after some tokens of search.

    Attributes:
        budget: name of the budget.
        tokens: tokens that had guided the search by then, the teacher's included.
        fitness: fitness of the profile on the archive's calibration text.
    """

    budget: str = ""
    tokens: Number
    fitness: Number


class LookRow(_Record):
    """The best profile of one budget at one look at validation text, compared with the uniform profile.

    Attributes:
        tokens: tokens that had guided the search by then, the teacher's included.
        budget: name of the budget.
        calibration: fitness of the profile on calibration text.
        validation: fitness of the profile on validation text.
        calibration_of_uniform: fitness of the profile divided by that of the uniform profile, on calibration text.
        validation_of_uniform: the same ratio on validation text.
        gap: `validation_of_uniform` minus `calibration_of_uniform`.
    """

    tokens: Number
    budget: str
    calibration: Figure = None
    validation: Figure = None
    calibration_of_uniform: Figure = None
    validation_of_uniform: Figure = None
    gap: Figure = None


class Front(_Record):
    """The result of a run, with the figures that describe the search.

    Attributes:
        name: name of the run.
        model: folder or name of the model, as the user gave it.
        cost_kind: kind of cost that is the front's axis, for example `bits`.
        cost_unit: unit of every point's `cost`, for example `bits/weight`.
        points: points of the front, in order of cost.
        baselines: profiles that every budget is compared with, in order of cost.
        dense: figures of the uncompressed model, `bytes` and `heldout_perplexity`.
        archive: cost, in the front's unit, and fitness of every entry of the archive.
        looks: looks at validation text, in order of tokens.
        validation_tokens: number of validation tokens that went through the model, over all profiles.
        validation_documents: number of validation documents, which are the samples of the final test.
        weights: number of linear weights of each unit, by unit name.
        method: names of the search methods, joined by `+`.
        seed: root of all random numbers.
        evaluations: number of evaluations that the search asked for.
        tokens: number of calibration tokens of these evaluations, those of slopes included.
        teacher_tokens: number of calibration tokens that went through the dense model.
        seconds: time spent searching, in seconds.
        stopped: name of the limit that ended the search, or None.
        progress: incumbents of one budget after the other, each in order of tokens.
        fingerprints: digests of model, space, level database, evaluation and data sets, by name.
    """

    name: str = ""
    model: str = ""
    cost_kind: str = ""
    cost_unit: str = ""
    points: list[Point]
    baselines: list[Point] = []
    dense: dict[str, Figure] = {}
    archive: list[list[Figure]] = []
    looks: list[LookRow] = []
    validation_tokens: int = 0
    validation_documents: int | None = None
    weights: dict[str, int] = {}
    method: str = ""
    seed: int | None = None
    evaluations: int | None = None
    tokens: int | None = None
    teacher_tokens: int | None = None
    seconds: Figure = None
    stopped: str | None = None
    progress: list[Incumbent] = []
    fingerprints: dict[str, str] = {}

    @classmethod
    def of(cls, record: Mapping[str, Any], source: str) -> Self:
        """Build a front from JSON values.

        Args:
            record: content of `front.json` without its `format_version`.
            source: name of the file, for error messages.

        Raises:
            ValueError: a value is missing or has the wrong type; the message names its place.
        """
        try:
            return cls.model_validate(record)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(
                f"{source} is damaged at {place}: {first['msg']}; restore it, or run the search again to rewrite it"
            ) from error

    def find(self, budget: str) -> Point:
        """Return the point of a budget, given the budget's name or the last word of the name (`bits 3.25` or `3.25`).

        Raises:
            ValueError: no point or several points have such a budget.
        """
        exact = [point for point in self.points if point.budget == budget]
        found = exact or [point for point in self.points if point.budget.split()[-1:] == [budget]]
        if len(found) > 1:
            meant = ", ".join(point.budget for point in found)
            raise ValueError(f"budget {budget!r} may mean any of {meant}; give the whole name")
        if not found:
            names = [point.budget for point in self.points]
            raise ValueError(f"budget {budget!r} is not one of this run's; {nearest(budget, names)}")
        return found[0]

    def kept_refit(self, units: Mapping[str, str]) -> Point | None:
        """Return the point that has this profile (labels by unit name) and whose refit was kept, or None."""
        for point in self.points:
            if point.profile == units and point.refit is not None and point.refit.kept:
                return point
        return None

    def with_points(self, points: list[Point]) -> Self:
        """Return a copy of the front with other points."""
        return self.model_copy(update={"points": points})
