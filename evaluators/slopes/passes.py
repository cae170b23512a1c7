"""The time that slopes cost, counted in forward passes."""

from collections import Counter

from ...spaces.space import Space


def passes(space: Space) -> int:
    """Return an upper bound of the time that slopes cost, in forward passes of the model.

    Two passes go forward and two backward. Each other level adds a product as long as a forward pass; with droppable
    branches there is one more pass, and one per branch of the block that has most.
    """
    levels = max((len(unit.levels) - 1 for unit in space.units if not unit.droppable), default=0)
    branches = Counter(unit.block for unit in space.units if unit.droppable)
    return 4 + levels + (1 + max(branches.values()) if branches else 0)
