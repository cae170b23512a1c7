from collections.abc import Sequence

from paretopress.search.asking.turns import Turns
from paretopress.search.methods.greedy import GreedyConfig, GreedySearcher
from paretopress.spaces.space import Limits, Profile, Space
from tests.contracts.searcher import SearcherContract, finish
from tests.toys import CALIBRATION, LENGTH, ToyEvaluator, drop_limits, drop_space


class TestGreedy(SearcherContract):
    random = False
    within = False

    def make(self, space: Space, limits: Limits, seed: int, start: Sequence[Profile] = ()) -> Turns:
        return GreedySearcher(GreedyConfig(tokens=2 * LENGTH), space, limits, CALIBRATION, seed, start)


def test_branches_go_in_order_of_harm() -> None:
    space = drop_space()
    evaluator = ToyEvaluator(space)
    searcher = GreedySearcher(GreedyConfig(tokens=LENGTH), space, drop_limits(space), CALIBRATION, 0)
    finish(searcher, evaluator)
    harm = sorted(range(8), key=lambda u: evaluator.penalties[u][0])
    profile = [1] * 8
    for unit in harm:
        if space.fits(tuple(profile), drop_limits(space)):
            break
        profile[unit] = 0
    lowered = evaluator.true(tuple(profile))
    assert searcher.best is not None
    assert evaluator.true(searcher.best) <= lowered


def test_stays_at_the_dearest_where_it_fits() -> None:
    space = drop_space()
    searcher = GreedySearcher(GreedyConfig(), space, {"parameters": 10_000}, CALIBRATION, 0)
    finish(searcher, ToyEvaluator(space))
    assert searcher.best == (1,) * 8
