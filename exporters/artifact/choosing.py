"""Choice of a point of a front by its budget, its number or its size."""

import math
from dataclasses import dataclass
from pathlib import Path

from ...search.folder.front import Front, Point
from ...spaces.budget import parse_bytes


@dataclass(frozen=True)
class Choice:
    """A user's choice of a profile of a run; exactly one attribute must be given.

    Attributes:
        budget: name of the point's budget, or the last word of the name (`bits 3.25` or `3.25`).
        point: number of a point of the front, from 1, in order of cost, as in the tables.
        size: most bytes that the model may take, as a number or with a unit (`4.2GB`, `900MiB`).
        profile: path of a profile file that is used instead of a point.
    """

    budget: str | None = None
    point: int | None = None
    size: str | None = None
    profile: Path | None = None

    def check(self, front: Front) -> None:
        """Refuse a choice that does not give exactly one attribute.

        Args:
            front: the run's front, whose budgets and points the message names.

        Raises:
            ValueError: no attribute is given, or several are.
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
    """Return the point of the front that a choice names; the choice must not be a profile file.

    Raises:
        ValueError: the front has no such point.
    """
    if choice.point is not None:
        return _numbered(front, choice.point)
    if choice.size is not None:
        return _within(front, choice.size)
    return front.find(str(choice.budget))


def _numbered(front: Front, number: int) -> Point:
    """Return the point with a number from 1."""
    points = front.points
    if not 1 <= number <= len(points):
        raise ValueError(f"the front has no point {number}; its points are 1 to {len(points)}")
    return points[number - 1]


def _within(front: Front, size: str) -> Point:
    """Return the point with the lowest calibration fitness among the points of at most `size` bytes.

    The held-out figures are not used, because a point that they chose could no longer be judged by them fairly. Of
    points with equal fitness the one with most bytes is taken, because it has lost less.
    """
    points = front.points
    sizes = [point.bytes for point in points]
    if None in sizes:
        raise ValueError(
            "the points of this run's front have no sizes in bytes; choose with --budget or --point"
        )
    limit = parse_bytes(size)
    if small := [point for point in points if (point.bytes or 0) <= limit]:
        return min(small, key=lambda point: (_fitness(point), -(point.bytes or 0)))
    least = min(points, key=lambda point: point.bytes or 0)
    raise ValueError(
        f"no point of the front fits in {limit:,} bytes; the smallest, {least.budget}, takes {least.bytes:,}"
    )


def _fitness(point: Point) -> float:
    """Return the calibration fitness of a point; a point without one counts as infinitely bad."""
    return math.inf if point.fitness is None else float(point.fitness)
