"""The goals of a run, which are its budgets with the baselines that each is compared with."""

from collections.abc import Mapping
from dataclasses import dataclass

from ...spaces.budget import BudgetConfig
from ...spaces.space import Limits, Profile, Space
from ..allocation.allocator import Allocator
from ..methods.dp import layer_errors
from .assembly import Assembly


@dataclass(frozen=True)
class Baseline:
    """A profile that the winner of a budget is compared with.

    Attributes:
        method: name of the baseline, `uniform` or `dp-nmse`.
        profile: profile of the baseline for the budget.
    """

    method: str
    profile: Profile


@dataclass(frozen=True)
class Goal:
    """One budget with its baselines.

    Attributes:
        budget: budget in the units of the configuration.
        limits: exact limits of the budget by kind of cost.
        baselines: baselines for the budget; the first one is `uniform`.
    """

    budget: BudgetConfig
    limits: Limits
    baselines: tuple[Baseline, ...]


def make_goals(assembly: Assembly) -> list[Goal]:
    """Return every budget with its baselines.

    The baselines are the uniform profile and the profile that dynamic programming finds from the output errors of the
    layers. The level database must be filled.
    """
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
    """Return the sum of the relative output errors of a unit's layers, by unit name and label.

    The labels `dense`, `keep` and `drop` have no entry.

    Args:
        space: space of the units.
        errors: relative output error of every layer and level, by path of the layer and label.
    """
    return {
        unit.name: {
            label: sum(errors[module][label] for module in unit.modules)
            for label in unit.index
            if label not in ("dense", "keep", "drop")
        }
        for unit in space.units
    }
