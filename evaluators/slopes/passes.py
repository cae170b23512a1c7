"""What slopes cost, in forward passes."""

from collections import Counter

from ...spaces.space import Space


def passes(space: Space) -> int:
    """Forward passes that slopes cost at most: two, two backward, a product per other level, and one per branch state."""
    levels = max((len(unit.levels) - 1 for unit in space.units if not unit.droppable), default=0)
    branches = Counter(unit.block for unit in space.units if unit.droppable)
    return 4 + levels + (1 + max(branches.values()) if branches else 0)
