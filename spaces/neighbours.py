"""The neighbours of levels: which levels are one step apart.

Levels of different kinds have no single order, so each level names its neighbours.
"""

from itertools import pairwise

from .levels.labels import parse_label
from .unit import Level


def link_neighbours(levels: list[tuple[str, dict[str, int]]]) -> tuple[Level, ...]:
    """Build the levels of a unit, each with its neighbours.

    Neighbours follow each other in cost among the levels of equal sparsity, or among those of equal grid. Where two
    levels that follow each other in cost are not yet connected, they become neighbours, so that every level can be
    reached from every other.

    Args:
        levels: label and costs by cost kind of every level, in order of cost.
    """
    schemes = [parse_label(label) for label, _ in levels]
    links: list[set[int]] = [set() for _ in levels]

    def link(order: list[int]) -> None:
        for low, high in pairwise(order):
            links[low].add(high)
            links[high].add(low)

    for axis in ("grid", "sparsity"):
        for value in {getattr(scheme, axis) for scheme in schemes}:
            link([i for i, scheme in enumerate(schemes) if getattr(scheme, axis) == value])
    for low, high in pairwise(range(len(levels))):
        if high not in _reachable(links, low):
            link([low, high])
    return tuple(
        Level(label, costs, tuple(sorted(found))) for (label, costs), found in zip(levels, links, strict=True)
    )


def _reachable(links: list[set[int]], start: int) -> set[int]:
    """Return the indices of the levels that are connected with `start`."""
    found, frontier = {start}, [start]
    while frontier:
        frontier = [n for i in frontier for n in links[i] if n not in found]
        found.update(frontier)
    return found
