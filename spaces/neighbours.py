"""Which levels are one step apart: levels of different kinds have no single order."""

from itertools import pairwise

from .levels.labels import parse_label
from .unit import Level


def link_neighbours(levels: list[tuple[str, dict[str, int]]]) -> tuple[Level, ...]:
    """Link levels (in order of cost) one step apart along bits at equal sparsity, or along sparsity at equal bits.

    What that leaves apart is joined in order of cost, so that every level can be reached.
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
    found, frontier = {start}, [start]
    while frontier:
        frontier = [n for i in frontier for n in links[i] if n not in found]
        found.update(frontier)
    return found
