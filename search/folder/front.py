"""The content of `front.json`: what a run found, typed once for its writer, the table, the report and the exports."""

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
"""A number, or None where it is not known or was not finite."""


class _Record(BaseModel):
    """Keys that another release wrote are kept; keys that were not given are not written."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    def record(self) -> dict[str, Any]:
        """The content as JSON values."""
        return self.model_dump(exclude_unset=True)


class Refit(_Record):
    """What became of a point whose levels were made anew for its profile.

    Attributes:
        database: fingerprint of the refitted levels.
        kept: whether the refitted levels stand for the point from then on.
        validation_gain: mean gain on validation documents, in nats per token.
        p_value: of the paired test against the point as the search left it, corrected for the number of points.
        heldout_kl: divergence from the dense model on held-out text, in nats per token.
        heldout_perplexity: perplexity on held-out text.
        heldout_interval: ends of the 95 % interval of `heldout_kl`.
    """

    database: str = ""
    kept: bool
    validation_gain: Figure = None
    p_value: Figure = None
    heldout_kl: Figure = None
    heldout_perplexity: Figure = None
    heldout_interval: list[float] | None = None


class Point(_Record):
    """One compressed model: a point of the front, or a baseline.

    Attributes:
        budget: name of the budget that the profile was chosen for, for example `bits 3.25`.
        method: who proposed the profile, for example `frontier` or `uniform`.
        cost: cost of the profile in the front's unit.
        costs: kind of cost to the exact cost.
        bytes: stored size of the model, embeddings and head included.
        fitness: value on the archive's calibration text.
        heldout_kl: divergence from the dense model on held-out text, in nats per token.
        heldout_perplexity: perplexity on held-out text.
        heldout_interval: ends of the 95 % interval of `heldout_kl`.
        profile: unit name to label, units under a dropped branch left out.
        significant: whether the point beats the uniform profile of its budget on validation text; None for baselines.
        p_value: of that test, corrected for all tests of the run.
        refit: what became of the point's refit; None if there was none.
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
        """Held-out figures of the weights that stand for the point: those of its refit, if that was kept."""
        source = self.refit if self.refit is not None and self.refit.kept else self
        return {"kl": source.heldout_kl, "perplexity": source.heldout_perplexity}


class Incumbent(_Record):
    """The best profile of one budget after some tokens of search.

    Attributes:
        budget: name of the budget.
        tokens: tokens that had gone through the model.
        fitness: value of the profile on the archive's calibration text.
    """

    budget: str = ""
    tokens: Number
    fitness: Number


class LookRow(_Record):
    """One look at validation text: the best profile of one budget beside the uniform profile.

    Attributes:
        tokens: tokens that had guided the search.
        budget: name of the budget.
        calibration: the profile's value on calibration text.
        validation: the profile's value on validation text.
        calibration_of_uniform: share of the uniform profile's value that is left on calibration text.
        validation_of_uniform: the same share on validation text.
        gap: how much larger the share on validation text is.
    """

    tokens: Number
    budget: str
    calibration: Figure = None
    validation: Figure = None
    calibration_of_uniform: Figure = None
    validation_of_uniform: Figure = None
    gap: Figure = None


class Front(_Record):
    """What a run found, and how.

    Attributes:
        name: name of the run.
        model: the model as the user named it.
        cost_kind: kind of cost that is the front's axis, for example `bits`.
        cost_unit: unit of every point's `cost`, for example `bits/weight`.
        points: the front, in order of cost.
        baselines: the profiles that every budget is compared with, in order of cost.
        dense: figures of the uncompressed model, `bytes` and `heldout_perplexity`.
        archive: cost and fitness of everything in the archive.
        looks: looks at validation text, in order of tokens.
        validation_tokens: tokens of validation text that went through the model.
        validation_documents: documents of validation text, which the final test counts.
        weights: unit name to its number of linear weights.
        method: the search methods, joined by `+`.
        seed: root of all random numbers.
        evaluations: evaluations that the search asked for.
        tokens: tokens of these evaluations.
        teacher_tokens: tokens of the dense model.
        seconds: time spent searching.
        stopped: the limit that ended the search, or None.
        progress: incumbents of every budget, in order of tokens.
        fingerprints: what was fingerprinted to its digest.
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
        """The front in JSON values.

        Args:
            record: content of `front.json` without its version.
            source: name of the file, for messages.

        Raises:
            ValueError: a value is missing or is of another kind; the message names it.
        """
        try:
            return cls.model_validate(record)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(
                f"{source} is damaged at {place}: {first['msg']}; restore it, or let the search write it again"
            ) from error

    def find(self, budget: str) -> Point:
        """The point of a budget, by its name or by its last word (`bits 3.25` or `3.25`).

        Raises:
            ValueError: there is no such point, or more than one.
        """
        exact = [point for point in self.points if point.budget == budget]
        found = exact or [point for point in self.points if point.budget.split()[-1:] == [budget]]
        if len(found) != 1:
            names = [point.budget for point in self.points]
            raise ValueError(f"budget {budget!r} is not one of this run's; {nearest(budget, names)}")
        return found[0]

    def kept_refit(self, units: Mapping[str, str]) -> Point | None:
        """The point with these units whose refit was kept, or None."""
        for point in self.points:
            if point.profile == units and point.refit is not None and point.refit.kept:
                return point
        return None

    def with_points(self, points: list[Point]) -> Self:
        """The same front with other points."""
        return self.model_copy(update={"points": points})
