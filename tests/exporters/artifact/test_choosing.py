"""Points by number and by size, against plain definitions."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretopress.exporters.artifact.choosing import Choice, choose_point
from paretopress.search.folder.front import Front, Point


def front(*points: tuple[int, float | None]) -> Front:
    return Front(
        points=[Point(budget=f"bits {i}", bytes=size, fitness=f) for i, (size, f) in enumerate(points)]
    )


def test_points_are_numbered_from_one() -> None:
    found = front((10, 0.5), (20, 0.2))
    assert [choose_point(found, Choice(point=n)).budget for n in (1, 2)] == ["bits 0", "bits 1"]
    for number in (0, 3, -1):
        with pytest.raises(ValueError, match=rf"no point {number}; its points are 1 to 2"):
            choose_point(found, Choice(point=number))


@given(
    st.lists(st.tuples(st.integers(1, 50), st.none() | st.floats(0, 5)), min_size=1, max_size=8),
    st.integers(1, 50),
)
def test_the_lowest_fitness_of_those_that_fit(points: list[tuple[int, float | None]], limit: int) -> None:
    found = front(*points)
    small = [point for point in found.points if (point.bytes or 0) <= limit]
    if not small:
        least = min(size for size, _ in points)
        with pytest.raises(
            ValueError, match=rf"fits in {limit:,} bytes; the smallest, bits \d, takes {least}"
        ):
            choose_point(found, Choice(size=str(limit)))
        return
    chosen = choose_point(found, Choice(size=str(limit)))
    assert chosen in small
    known = [point.fitness for point in small if point.fitness is not None]
    assert chosen.fitness == (min(known) if known else None)


@pytest.mark.parametrize(
    ("size", "budget"),
    [("4.2GB", "bits 0"), ("4.2GiB", "bits 1"), ("4500000000", "bits 1"), ("4400MB", "bits 0")],
)
def test_sizes_have_units(size: str, budget: str) -> None:
    found = front((4_200_000_000, 0.5), (4_500_000_000, 0.2))
    assert choose_point(found, Choice(size=size)).budget == budget


@pytest.mark.parametrize(
    ("found", "size", "message"),
    [
        (front((10, 1.0)), "4.2 horses", "size '4.2 horses' is not a number with a unit"),
        (
            Front(points=[Point(budget="bits 3")]),
            "9",
            "the points of this run's front have no sizes in bytes; choose with --budget or",
        ),
    ],
)
def test_sizes_that_mean_nothing(found: Front, size: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        choose_point(found, Choice(size=size))


def test_exactly_one_way() -> None:
    found = front((10, 1.0), (20, 0.5))
    with pytest.raises(ValueError, match="--point and --size both say what to export; keep one"):
        Choice(point=1, size="9").check(found)
    with pytest.raises(
        ValueError, match=r"a budget of the run \(bits 0, bits 1\) .* a point \(1 to 2\) or a size"
    ):
        Choice().check(found)
    Choice(budget="3").check(found)
