"""Hints for the user of a front with uniform profiles, on why the search's own profiles were not chosen."""

from ..folder.front import Front, Point
from ..study.selection import FEWEST_DOCUMENTS, LEVEL


def hints(front: Front) -> list[str]:
    """Say for which budgets nothing was significantly better than the uniform profile, and what would change that.

    Returns:
        One line, or no line if every point is significantly better or the number of documents is not known.
    """
    left = [point for point in front.points if not point.significant]
    documents = front.validation_documents
    if not left or documents is None:
        return []
    found = "; ".join(_found(front, point) for point in left)
    if documents < FEWEST_DOCUMENTS:
        return [
            f"no profile can be shown to be better than uniform for {found}: the final test needs {FEWEST_DOCUMENTS} "
            f"validation documents, and {documents} are {FEWEST_DOCUMENTS - documents} too few; raise "
            "data.validation.tokens, or give text with more documents"
        ]
    return [
        f"no profile is significantly better than uniform for {found}: {documents} validation documents show no gain at "
        f"the level of {LEVEL:.0%} for the whole run; raise data.validation.tokens to show smaller gains, or search "
        "longer"
    ]


def _found(front: Front, point: Point) -> str:
    """Return the budget's name, with the calibration fitness of the best and of the uniform profile if known."""
    best = [row.fitness for row in front.progress if row.budget == point.budget][-1:]
    uniform = [
        row.fitness for row in front.baselines if (row.budget, row.method) == (point.budget, "uniform")
    ]
    if not best or not uniform or uniform[0] is None:
        return point.budget
    return f"{point.budget} (fitness on calibration text: best {best[0]:.4g}, uniform {uniform[0]:.4g})"
