"""Why uniform profiles stand in a front, in words."""

from paretopress.search.folder.front import Front, Incumbent, Point
from paretopress.search.jobs.hints import hints


def front(documents: int | None, *significant: bool | None) -> Front:
    names = [f"bits {3 + i}" for i in range(len(significant))]
    return Front(
        points=[Point(budget=name, significant=good) for name, good in zip(names, significant, strict=True)],
        baselines=[Point(budget=name, method="uniform", fitness=0.75204) for name in names],
        progress=[Incumbent(budget=name, tokens=t, fitness=1 / t) for name in names for t in (1, 2)],
        validation_documents=documents,
    )


def test_too_few_documents_are_counted() -> None:
    assert hints(front(8, None, True)) == [
        "no profile can be shown to be better than uniform for bits 3 (fitness on calibration text: best 0.5, uniform "
        "0.752): the final test needs 20 validation documents, and 8 are 12 too few; raise data.validation.tokens, or "
        "give text with more documents"
    ]


def test_enough_documents_that_show_nothing() -> None:
    (line,) = hints(front(24, False, False))
    assert line.startswith("no profile is significantly better than uniform for bits 3 (fitness on")
    assert "uniform 0.752); bits 4 (fitness on calibration text" in line
    assert line.endswith(
        "24 validation documents show no gain at the level of 5% for the whole run; raise data.validation.tokens "
        "to show smaller gains, or search longer"
    )


def test_nothing_to_say() -> None:
    assert hints(front(24, True, True)) == hints(front(None, False)) == []
    assert hints(Front(points=[Point(budget="bits 3", significant=False)], validation_documents=3)) == [
        hints(front(3, False))[0].replace(" (fitness on calibration text: best 0.5, uniform 0.752)", "")
    ]
