"""Minimum counts: rules that at least some number of units take a given level, expressed as limits on costs.

A lower bound on the units at a level is an upper bound on the other units that could take it. Each minimum count
therefore becomes a cost kind, of which every search method already respects the limit. Its cost is 1 for each unit that
could take the level but has another one or is under a dropped branch.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from .configuration import MinimumConfig
from .space import Space
from .unit import Unit


def with_minimums(space: Space, minimums: Sequence[MinimumConfig]) -> Space:
    """Return the space with one more cost kind per minimum count, and the limits on these kinds in `Space.always`.

    Raises:
        ValueError: fewer units than the minimum count can take the level.
    """
    for minimum in minimums:
        space = _with_minimum(space, minimum)
    return space


def _with_minimum(space: Space, minimum: MinimumConfig) -> Space:
    """Return the space with the cost kind and the limit of one minimum count."""
    label = minimum.label
    counted = {u for u, unit in enumerate(space.units) if _counts(unit, minimum)}
    if len(counted) < minimum.count:
        raise ValueError(
            f"space.at_least asks for {minimum.count} units at {label!r}, but {len(counted)} can take it; lower the "
            f"count, widen `units` or give more layers the level {label!r}"
        )
    kind = f"units not at {label}" + (f" in {minimum.units}" if minimum.units else "")
    units = []
    for u, unit in enumerate(space.units):
        inside = len(counted & set(space.children[u]))
        levels = tuple(
            replace(
                level,
                costs={
                    **level.costs,
                    kind: int(u in counted and level.label != label) + inside * (level.label == "drop"),
                },
            )
            for level in unit.levels
        )
        units.append(replace(unit, levels=levels))
    spare = len(counted) - minimum.count
    return replace(
        space, units=tuple(units), always={**space.always, kind: min(spare, space.always.get(kind, spare))}
    )


def _counts(unit: Unit, minimum: MinimumConfig) -> bool:
    """Tell whether the unit can take the level of the minimum count and its name matches the pattern."""
    return minimum.label in unit.index and re.search(minimum.units, unit.name) is not None
