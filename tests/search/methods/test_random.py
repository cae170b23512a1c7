from collections.abc import Sequence

from paretopress.search.asking.turns import Turns
from paretopress.search.methods.random import RandomConfig, RandomSearcher
from paretopress.spaces.space import Limits, Profile, Space
from tests.contracts.searcher import SearcherContract, finish
from tests.toys import CALIBRATION, LENGTH, ToyEvaluator, bits_limits, bits_space


class TestRandom(SearcherContract):
    def make(self, space: Space, limits: Limits, seed: int, start: Sequence[Profile] = ()) -> Turns:
        config = RandomConfig(samples=20, tokens=2 * LENGTH, finalists=3, batch=8)
        return RandomSearcher(config, space, limits, CALIBRATION, seed, start)


def test_the_best_few_are_measured_again() -> None:
    space = bits_space()
    evaluator = ToyEvaluator(space)
    config = RandomConfig(samples=30, tokens=LENGTH, finalists=3)
    trials = finish(RandomSearcher(config, space, bits_limits(space), CALIBRATION, 0), evaluator)
    drawn = [t.profile for t in trials if t.fidelity.sequences == 1]
    assert len(drawn) == len(set(drawn)) == 30
    measured = {t.profile for t in trials if t.fidelity == CALIBRATION.archive}
    assert measured == {space.uniform(bits_limits(space)), *sorted(drawn, key=evaluator.true)[:3]}
