"""Which point of a front a user means: by budget, by number or by size."""

import math
from dataclasses import dataclass
from pathlib import Path

from ...search.folder.front import Front, Point
from ...spaces.budget import parse_bytes


@dataclass(frozen=True)
class Choice:
    """One of the ways to name a profile of a run.

    Attributes:
        budget: the budget's name or its last word (`bits 3.25` or `3.25`).
        point: the number of a point of the front, from 1, in order of cost, as tables have them.
        size: bytes that the model may take, as a number or with a unit (`4.2GB`, `900MiB`).
        profile: a profile file instead of a point.
    """

    budget: str | None = None
    point: int | None = None
    size: str | None = None
    profile: Path | None = None

    def check(self, front: Front) -> None:
        """Refuse all but one way.

        Raises:
            ValueError: none or several are given.
        """
        given = [name for name, value in vars(self).items() if value is not None]
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(f'--{name}' for name in given)} both say what to export; keep one"
            )
        if not given:
            names = ", ".join(point.budget for point in front.points)
            raise ValueError(
                f"give a budget of the run ({names}) or a profile file, a point (1 to {len(front.points)}) or a size"
            )


def choose_point(front: Front, choice: Choice) -> Point:
    """The point that a choice without a profile file means.

    Raises:
        ValueError: the front has no such point.
    """
    if choice.point is not None:
        return _numbered(front, choice.point)
    if choice.size is not None:
        return _within(front, choice.size)
    return front.find(str(choice.budget))


def _numbered(front: Front, number: int) -> Point:
    points = front.points
    if not 1 <= number <= len(points):
        raise ValueError(f"the front has no point {number}; its points are 1 to {len(points)}")
    return points[number - 1]


def _within(front: Front, size: str) -> Point:
    """The point with the lowest calibration fitness of those that are small enough.

    The held-out figures choose nothing: they would no longer be fair for what they chose. Of equals the larger is
    taken, which has lost less.
    """
    points = front.points
    sizes = [point.bytes for point in points]
    if None in sizes:
        raise ValueError("this run's front has no bytes; choose with --budget or --point")
    limit = parse_bytes(size)
    if small := [point for point in points if (point.bytes or 0) <= limit]:
        return min(small, key=lambda point: (_fitness(point), -(point.bytes or 0)))
    least = min(points, key=lambda point: point.bytes or 0)
    raise ValueError(
        f"no point of the front fits in {limit:,} bytes; the smallest, {least.budget}, takes {least.bytes:,}"
    )


def _fitness(point: Point) -> float:
    return math.inf if point.fitness is None else float(point.fitness)
