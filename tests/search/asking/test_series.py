import json
from collections.abc import Sequence

import pytest

from paretopress.evaluators.trial import Trial
from paretopress.search.asking.searcher import Searcher
from paretopress.search.asking.series import Leg, Scored, SeriesSearcher, starts_within
from paretopress.search.methods.dp import DPConfig, DPSearcher
from paretopress.search.methods.evolution import EvolutionConfig, EvolutionSearcher
from paretopress.spaces.space import Limits
from tests.toys import CALIBRATION, LENGTH, ToyEvaluator, bits_limits, bits_space

SPACE = bits_space()


def evolution(limits: Limits, seed: int) -> Leg:
    config = EvolutionConfig(
        generations=3, offspring=6, survivors=(2, 1), tokens=(LENGTH, 2 * LENGTH), groups="none"
    )

    def leg(scored: Sequence[Scored]) -> Searcher:
        start = starts_within(SPACE, limits, scored, 2)
        return EvolutionSearcher(config, SPACE, limits, CALIBRATION, seed, start)

    return leg


def series() -> SeriesSearcher:
    low, high = bits_limits(SPACE, 3), bits_limits(SPACE, 4)

    def dp(_scored: Sequence[Scored]) -> Searcher:
        return DPSearcher(DPConfig(tokens=LENGTH), SPACE, [low, high], CALIBRATION, 0)

    return SeriesSearcher([dp, evolution(low, 1), evolution(high, 2)], CALIBRATION.archive)


def finish(searcher: SeriesSearcher, evaluator: ToyEvaluator) -> list[Trial]:
    trials: list[Trial] = []
    while asked := searcher.ask():
        trials += asked
        searcher.tell(list(evaluator.evaluate(asked)))
    return trials


def test_legs_follow_each_other_and_number_on() -> None:
    searcher = series()
    trials = finish(searcher, ToyEvaluator(SPACE, interaction=0.2, noise=0.1))
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert searcher.leg == 2


def test_later_legs_start_from_what_was_found() -> None:
    evaluator = ToyEvaluator(SPACE, interaction=0.2)
    searcher = series()
    while searcher.leg == 0:
        asked = searcher.ask()
        searcher.tell(list(evaluator.evaluate(asked)))
    starts = {trial.profile for trial in asked if trial.fidelity == CALIBRATION.archive}
    found = [t.profile for t in evaluator.seen if t.fidelity == CALIBRATION.archive][: -len(asked)]
    fitting = [p for p in found if SPACE.fits(p, bits_limits(SPACE, 3))]
    assert min(fitting, key=evaluator.true) in starts


def test_resumes_exactly_at_every_point() -> None:
    evaluator = ToyEvaluator(SPACE, interaction=0.2, noise=0.1)
    whole = finish(series(), evaluator)
    searcher, trials = series(), list[Trial]()
    while True:
        searcher = restored(searcher)
        asked = searcher.ask()
        if not asked:
            break
        searcher = restored(searcher)
        assert searcher.ask() == asked
        trials += asked
        searcher.tell(list(evaluator.evaluate(asked)))
    assert trials == whole


def restored(searcher: SeriesSearcher) -> SeriesSearcher:
    other = series()
    other.load_state_dict(json.loads(json.dumps(searcher.state_dict(), allow_nan=False)))
    return other


def test_starts_are_different_models_in_order() -> None:
    limits = bits_limits(SPACE, 3)
    uniform, cheap = SPACE.uniform(limits), SPACE.cheapest(limits)
    scored = [(SPACE.extreme("bits", largest=True), 0.1), (uniform, 0.2), (cheap, 0.3), (uniform, 0.4)]
    assert starts_within(SPACE, limits, scored, 5) == [uniform, cheap]
    assert starts_within(SPACE, limits, scored, 1) == [uniform]


def test_an_empty_series_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one searcher"):
        SeriesSearcher([], CALIBRATION.archive)
