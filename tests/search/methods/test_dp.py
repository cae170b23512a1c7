from collections.abc import Sequence
from typing import Literal

import pytest

from paretopress.search.asking.turns import Turns
from paretopress.search.methods.dp import DPConfig, DPSearcher, layer_errors
from paretopress.spaces.space import Limits, Profile, Space
from tests.contracts.searcher import SearcherContract, finish
from tests.toys import (
    CALIBRATION,
    LENGTH,
    SPACES,
    ToyEvaluator,
    bits_limits,
    bits_space,
    joint_limits,
    joint_space,
)


class TestKL(SearcherContract):
    random = False
    within = False

    def make(self, space: Space, limits: Limits, seed: int, start: Sequence[Profile] = ()) -> Turns:
        return DPSearcher(DPConfig(tokens=LENGTH, rounds=3), space, limits, CALIBRATION, seed, start)


class TestNMSE(SearcherContract):
    random = False

    def make(self, space: Space, limits: Limits, seed: int, start: Sequence[Profile] = ()) -> Turns:
        errors = {
            unit.name: {level.label: 1.0 / (1 + n) for n, level in enumerate(unit.levels)}
            for unit in space.units
            if not unit.droppable
        }
        return DPSearcher(DPConfig(errors="nmse"), space, limits, CALIBRATION, seed, start, errors)


@pytest.mark.parametrize("name", [name for name in SPACES if name not in ("bits", "ladder")])
@pytest.mark.parametrize("base", ["best", "uniform", "current"])
def test_finds_the_optimum_of_additive_errors(name: str, base: Literal["best", "uniform", "current"]) -> None:
    make, make_limits = SPACES[name]
    space = make()
    limits = make_limits(space)
    evaluator = ToyEvaluator(space, seed=5)
    searcher = DPSearcher(DPConfig(tokens=LENGTH, base=base), space, limits, CALIBRATION, 0)
    finish(searcher, evaluator)
    assert searcher.best is not None
    assert evaluator.true(searcher.best) == pytest.approx(evaluator.optimum(limits)[1], abs=1e-12)


def test_measures_around_a_dropped_branch() -> None:
    space, limits = joint_space(), joint_limits(joint_space())
    evaluator = ToyEvaluator(space, seed=5)
    start = space.parse(
        {"blocks.0.attention": "drop", "blocks.0.mlp": "keep", "blocks.0.up": "w2"}
        | {"blocks.1.attention": "keep", "blocks.1.q": "w2", "blocks.1.k": "w2"}
        | {"blocks.1.mlp": "keep", "blocks.1.up": "w2"}
    )
    searcher = DPSearcher(DPConfig(tokens=LENGTH, base="current"), space, limits, CALIBRATION, 0, [start])
    finish(searcher, evaluator)
    assert searcher.best is not None
    assert evaluator.true(searcher.best) == pytest.approx(evaluator.optimum(limits)[1], abs=1e-12)


def test_one_set_of_sensitivities_serves_every_budget() -> None:
    space = bits_space(blocks=1)
    budgets = [bits_limits(space, bits) for bits in (2, 3, 4, 5)]
    evaluator = ToyEvaluator(space, seed=2)
    searcher = DPSearcher(DPConfig(tokens=LENGTH), space, budgets, CALIBRATION, 0)
    trials = finish(searcher, evaluator)
    assert sum(trial.fidelity.sequences == 1 for trial in trials) == 1 + 3 * len(space.units)
    for limits in budgets:
        fitting = [p for p in searcher.archived if space.fits(p, limits)]
        best = min(fitting, key=searcher.archived.__getitem__)
        assert evaluator.true(best) == pytest.approx(evaluator.optimum(limits)[1], abs=1e-12)
    assert searcher.predicted().costs[-1] == space.cost(space.extreme("bits", largest=True), "bits")


def test_rounds_improve_where_errors_interact() -> None:
    space = bits_space()
    limits = bits_limits(space)
    gains = []
    for seed in range(5):
        evaluator = ToyEvaluator(space, seed=seed, interaction=1.0)
        values = []
        for rounds in (1, 4):
            searcher = DPSearcher(DPConfig(tokens=LENGTH, rounds=rounds), space, limits, CALIBRATION, 0)
            finish(searcher, evaluator)
            assert searcher.best is not None
            values.append(evaluator.true(searcher.best))
        gains.append(values[0] - values[1])
    assert min(gains) >= 0.0
    assert max(gains) > 0.01


def test_a_trust_region_moves_by_single_steps() -> None:
    space = bits_space()
    searcher = DPSearcher(DPConfig(tokens=LENGTH, rounds=2), space, bits_limits(space), CALIBRATION, 0)
    evaluator = ToyEvaluator(space, seed=2, interaction=1.0)
    proposals = []
    while asked := searcher.ask():
        if all(trial.fidelity == CALIBRATION.archive for trial in asked):
            proposals.append(asked[0].profile)
        searcher.tell(list(evaluator.evaluate(asked)))
    before, after = proposals
    assert all(abs(a - b) <= 1 for a, b in zip(before, after, strict=True))


def test_layer_errors_know_drops_and_dense() -> None:
    space = joint_space(blocks=1)
    known = {"blocks.0.q": {"w2": 3.0, "w3": 2.0, "w4": 1.0}}
    with pytest.raises(ValueError, match=r"unit 'blocks.0.k' has no error for level 'w2'"):
        layer_errors(space, known)
    rows = layer_errors(space, known | {f"blocks.0.{n}": known["blocks.0.q"] for n in ("k", "up")})
    assert rows[0] == [1.0, 0.0]
    assert rows[1] == [3.0, 2.0, 1.0]


def test_needs_a_budget_and_errors() -> None:
    space = bits_space()
    with pytest.raises(ValueError, match="dp needs a limit"):
        DPSearcher(DPConfig(), space, [], CALIBRATION, 0)
    with pytest.raises(ValueError, match="nmse needs the layer errors"):
        DPSearcher(DPConfig(errors="nmse"), space, bits_limits(space), CALIBRATION, 0)
    fresh = DPSearcher(DPConfig(), space, bits_limits(space), CALIBRATION, 0)
    with pytest.raises(ValueError, match="no trial is measured yet"):
        fresh.predicted()
