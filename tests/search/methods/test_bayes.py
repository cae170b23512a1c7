from collections.abc import Sequence

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.search.asking.turns import Turns
from paretopress.search.methods.bayes import OptunaConfig, OptunaSearcher
from paretopress.search.methods.projection import Projection
from paretopress.spaces.space import Limits, Profile, Space
from tests.contracts.searcher import SearcherContract, finish
from tests.toys import CALIBRATION, LENGTH, SPACES, ToyEvaluator, bits_limits, bits_space


class TestTPE(SearcherContract):
    def make(self, space: Space, limits: Limits, seed: int, start: Sequence[Profile] = ()) -> Turns:
        config = OptunaConfig(trials=16, tokens=LENGTH, finalists=2, knots=3, batch=5)
        return OptunaSearcher(config, space, limits, CALIBRATION, seed, start)


class TestNSGA2(SearcherContract):
    def make(self, space: Space, limits: Limits, seed: int, start: Sequence[Profile] = ()) -> Turns:
        config = OptunaConfig(sampler="nsga2", trials=20, tokens=LENGTH, finalists=2, knots=3, batch=4)
        return OptunaSearcher(config, space, limits, CALIBRATION, seed, start)


class TestCMAES(SearcherContract):
    def make(self, space: Space, limits: Limits, seed: int, start: Sequence[Profile] = ()) -> Turns:
        config = OptunaConfig(sampler="cmaes", trials=20, tokens=LENGTH, finalists=2, knots=3, batch=5)
        return OptunaSearcher(config, space, limits, CALIBRATION, seed, start)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "cmaes", "gp"])
def test_learns_more_than_chance(sampler: str) -> None:
    space = bits_space(blocks=2)
    limits = bits_limits(space)
    evaluator = ToyEvaluator(space, seed=3)
    trials = 14 if sampler == "gp" else 80
    config = OptunaConfig.model_validate({"sampler": sampler, "trials": trials, "tokens": LENGTH, "knots": 2})
    searcher = OptunaSearcher(config, space, limits, CALIBRATION, 0)
    finish(searcher, evaluator)
    assert searcher.best is not None
    assert evaluator.true(searcher.best) < evaluator.true(space.uniform(limits))


def test_the_first_vector_is_uniform_and_told_as_projected() -> None:
    space = bits_space()
    limits = bits_limits(space)
    searcher = OptunaSearcher(OptunaConfig(trials=3, tokens=LENGTH), space, limits, CALIBRATION, 0)
    searcher.tell(list(ToyEvaluator(space).evaluate(searcher.ask())))
    assert searcher.ask()[0].profile == space.uniform(limits)


def test_optuna_is_as_talkative_as_before() -> None:
    before = optuna.logging.get_verbosity()
    space = bits_space()
    searcher = OptunaSearcher(
        OptunaConfig(trials=3, tokens=LENGTH), space, bits_limits(space), CALIBRATION, 0
    )
    finish(searcher, ToyEvaluator(space))
    assert optuna.logging.get_verbosity() == before


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["bits", "ladder", "drop", "joint"]), st.integers(0, 10_000))
def test_projections_use_the_budget_up(name: str, seed: int) -> None:
    make, make_limits = SPACES[name]
    space = make()
    limits = make_limits(space)
    projection = Projection(space, limits, knots=3)
    rng = np.random.default_rng(seed)
    vector = dict(zip(projection.names, rng.normal(size=len(projection.names)).tolist(), strict=True))
    profile = projection.profile(vector)
    assert space.fits(profile, limits)
    assert projection.profile(vector) == profile
    if name in ("bits", "ladder"):
        assert not any(space.steps(profile, u, limits, up=True) for u in range(len(space.units)))


def test_a_higher_priority_never_gets_less() -> None:
    space = bits_space(blocks=2)
    projection = Projection(space, bits_limits(space), knots=2)
    zero = dict.fromkeys(projection.names, 0.0)
    up = projection.profile(zero | {"type.up": 1.0})
    down = projection.profile(zero | {"type.up": -1.0})
    at = [u for u, unit in enumerate(space.units) if unit.name.endswith("up")]
    assert all(up[u] >= down[u] for u in at)
    assert up != down
