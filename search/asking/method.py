"""The interface of search methods: settings from the configuration that build a searcher for a task."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from ...spaces.space import Limits, Profile, Space
from .calibration_sequences import CalibrationSequences
from .series import Scored, starts_within
from .turns import Turns

Errors = Mapping[str, Mapping[str, float]]
"""Layer errors by unit name and label."""

STARTS = 4
"""Largest number of profiles of earlier methods that a later method starts from, for each budget."""


@dataclass(frozen=True)
class Task:
    """The task of a searcher.

    Attributes:
        space: space of the profiles to search.
        budgets: limits of every budget that the searcher serves; one budget unless its method serves all.
        calibration: calibration sequences to draw on.
        seed: seed of the searcher's random numbers.
        errors: layer errors of every unit at every level.
        scored: profiles that were measured before at the archive's fidelity, with their fitness, best first.
    """

    space: Space
    budgets: list[Limits]
    calibration: CalibrationSequences
    seed: int
    errors: Errors
    scored: Sequence[Scored] = ()

    @property
    def limits(self) -> Limits:
        """The limits of the first budget, the only one unless the method serves all."""
        return self.budgets[0]

    @property
    def start(self) -> list[Profile]:
        """The best profiles measured before that are within the first budget."""
        return starts_within(self.space, self.limits, self.scored, STARTS)

    @property
    def starts(self) -> list[Profile]:
        """The best profiles measured before that are within each budget, one budget after the other."""
        return [p for each in self.budgets for p in starts_within(self.space, each, self.scored, STARTS)]


class MethodConfig(BaseModel, ABC):
    """Settings of one search method; a subclass has a field `method` with its name.

    Attributes:
        serves: whether one searcher serves all budgets together, or one budget only.
        summary: one line that says what the method does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    serves: ClassVar[Literal["all", "one"]] = "one"
    summary: ClassVar[str]

    @abstractmethod
    def build(self, task: Task) -> Turns:
        """Build the searcher for a task."""
