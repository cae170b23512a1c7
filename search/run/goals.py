"""What a run aims at: every budget with the baselines it is compared with."""

from collections.abc import Mapping
from dataclasses import dataclass

from ...spaces.budget import BudgetConfig
from ...spaces.space import Limits, Profile, Space
from ..allocation.allocator import Allocator
from ..methods.dp import layer_errors
from .assembly import Assembly


@dataclass(frozen=True)
class Baseline:
    """A profile that every budget is compared with."""

    method: str
    profile: Profile


@dataclass(frozen=True)
class Goal:
    """One budget: its limits and baselines; the first baseline is `uniform`."""

    budget: BudgetConfig
    limits: Limits
    baselines: tuple[Baseline, ...]


def make_goals(assembly: Assembly) -> list[Goal]:
    """Every budget with its baselines, uniform and DP on layer errors."""
    known = unit_errors(assembly.space, assembly.database.errors())
    allocator = Allocator(assembly.space, layer_errors(assembly.space, known))
    goals = []
    for budget, limits in assembly.limits:
        baselines = (
            Baseline("uniform", assembly.space.uniform(limits)),
            Baseline("dp-nmse", allocator.best(limits)),
        )
        goals.append(Goal(budget, limits, baselines))
    return goals


def unit_errors(space: Space, errors: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Unit name to label to the sum of its layers' relative output errors."""
    return {
        unit.name: {
            label: sum(errors[module][label] for module in unit.modules)
            for label in unit.index
            if label not in ("dense", "keep", "drop")
        }
        for unit in space.units
    }
