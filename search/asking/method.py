"""What a search method is: settings that a configuration holds, and the searcher that they build."""

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
"""Unit name to label to layer error."""

STARTS = 4
"""Profiles of earlier methods that a later one starts from, for each budget."""


@dataclass(frozen=True)
class Task:
    """What a searcher is to do.

    Attributes:
        space: the profiles to search.
        budgets: the limits of every budget that the searcher serves; one unless its method serves all.
        calibration: calibration sequences to draw on.
        seed: root of the searcher's random numbers.
        errors: layer errors of every unit at every level.
        scored: profiles that were measured before on the archive's text, with their fitness, best first.
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
