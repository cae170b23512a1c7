"""Minimum counts: at least so many units at a level, as costs that every method keeps a limit on anyway.

A count from below is a count from above of the others, so it becomes a cost kind: 1 for each unit that could take the
level and has another one, or is under a dropped branch.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from .configuration import MinimumConfig
from .space import Space
from .unit import Unit


def with_minimums(space: Space, minimums: Sequence[MinimumConfig]) -> Space:
    """The space with one more cost kind for each minimum, and its limit among those that always hold.

    Raises:
        ValueError: fewer units than asked for can take the level.
    """
    for minimum in minimums:
        space = _with_minimum(space, minimum)
    return space


def _with_minimum(space: Space, minimum: MinimumConfig) -> Space:
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
    return minimum.label in unit.index and re.search(minimum.units, unit.name) is not None
