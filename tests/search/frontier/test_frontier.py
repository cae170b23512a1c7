from collections.abc import Sequence

import pytest

from paretopress.evaluators.slopes.slope_trial import Slopes, SlopeTrial
from paretopress.evaluators.trial import Evaluation, Fidelity, Trial
from paretopress.search.asking.calibration_sequences import CalibrationSequences
from paretopress.search.asking.turns import Turns
from paretopress.search.frontier.frontier import FrontierConfig, FrontierSearcher
from paretopress.search.methods.dp import DPConfig, DPSearcher
from paretopress.spaces.space import DENSE, Limits, Profile, Space
from tests.contracts.searcher import SearcherContract, finish
from tests.toys import (
    CALIBRATION,
    LENGTH,
    SPACES,
    ToyEvaluator,
    bits_limits,
    bits_space,
    drop_limits,
    drop_space,
)


class TestFrontier(SearcherContract):
    random = False  # a tiny space has so few offspring that every seed screens the same ones
    within = False

    def make(self, space: Space, limits: Limits, seed: int, start: Sequence[Profile] = ()) -> Turns:
        return FrontierSearcher(small(), space, [limits], CALIBRATION, seed, start)


def small(**settings: int | str) -> FrontierConfig:
    usual = {
        "tokens": LENGTH,
        "around": 2 * LENGTH,
        "check": 2 * LENGTH,
        "rounds": 6,
        "patience": 2,
        "offspring": 4,
    }
    return FrontierConfig.model_validate(usual | settings)


@pytest.mark.parametrize("name", [name for name in SPACES if name != "ladder"])
def test_finds_the_optimum_of_additive_errors(name: str) -> None:
    make, make_limits = SPACES[name]
    space = make()
    limits = make_limits(space)
    evaluator = ToyEvaluator(space, seed=5)
    searcher = FrontierSearcher(small(), space, [limits], CALIBRATION, 0)
    finish(searcher, evaluator)
    assert searcher.best is not None
    assert evaluator.true(searcher.best) == pytest.approx(evaluator.optimum(limits)[1], abs=1e-12)


def test_interactions_are_found_that_one_set_of_sensitivities_does_not_see() -> None:
    space = bits_space(blocks=6)
    limits = bits_limits(space)
    ahead = 0.0
    for seed in range(8):
        evaluator = ToyEvaluator(space, seed, interaction=1.0, noise=0.1)
        frontier = FrontierSearcher(small(), space, [limits], CALIBRATION, 0)
        dp = DPSearcher(DPConfig(tokens=LENGTH), space, limits, CALIBRATION, 0)
        for searcher in (frontier, dp):
            finish(searcher, evaluator)
        assert frontier.best is not None
        assert dp.best is not None
        ahead += evaluator.true(dp.best) / evaluator.true(frontier.best) - 1
    assert ahead / 8 > 0.02


@pytest.mark.parametrize(("archive", "asked"), [(8, 8), (64, 32)])
def test_slopes_take_as_much_text_as_the_archive_and_16384_tokens_at_most(archive: int, asked: int) -> None:
    space, length = bits_space(), 512
    pool = CalibrationSequences(128, length, Fidelity(0, 0, archive, length))
    searcher = FrontierSearcher(FrontierConfig(), space, [bits_limits(space)], pool, 0)
    assert {trial.fidelity.sequences for trial in searcher.ask() if isinstance(trial, SlopeTrial)} == {asked}


def test_one_survey_serves_every_budget_and_no_winner_loses_to_a_cheaper_one() -> None:
    space = bits_space(blocks=3)
    budgets = [bits_limits(space, bits) for bits in (4, 2, 5, 3)]
    evaluator = ToyEvaluator(space, seed=2, interaction=0.5, noise=0.05)
    searcher = FrontierSearcher(small(), space, budgets, CALIBRATION, 0)
    trials = finish(searcher, evaluator)
    assert [t.profile for t in trials if isinstance(t, SlopeTrial)].count(DENSE) == 1
    best = []
    for limits in sorted(budgets, key=lambda limits: limits["bits"]):
        fitting = [f for p, f in searcher.archived.items() if space.fits(p, limits)]
        best.append(min(fitting))
        assert best[-1] <= searcher.archived[space.canonical(space.uniform(limits))]
        assert searcher.archived[space.canonical(searcher.incumbent(budgets.index(limits)))] == best[-1]
    assert best == sorted(best, reverse=True)


def test_looks_around_on_text_behind_the_archive_and_compares_on_the_archive() -> None:
    space = bits_space(blocks=2)
    searcher = FrontierSearcher(small(patience=3), space, [bits_limits(space)], CALIBRATION, 0)
    trials = finish(searcher, ToyEvaluator(space, interaction=0.5, noise=0.1))
    check = Fidelity(0, 0, 2, LENGTH)
    assert {t.fidelity for t in trials if t.fidelity.start < CALIBRATION.archive.stop} == {
        CALIBRATION.archive,
        check,
    }
    assert not [
        t for t in trials if isinstance(t, SlopeTrial) and t.fidelity.start < CALIBRATION.archive.stop
    ]
    looks = [t.fidelity for t in trials if isinstance(t, SlopeTrial)]
    assert [f.sequences for f in looks] == sorted(f.sequences for f in looks)
    assert {f.sequences for f in looks} == {1, 2, 4, 8}
    assert len(set(looks)) > 3


def test_only_what_wins_its_check_is_measured_on_the_archive() -> None:
    space = bits_space(blocks=3)
    limits = bits_limits(space)
    evaluator = ToyEvaluator(space, seed=1, interaction=1.0, noise=0.3)
    searcher = FrontierSearcher(small(), space, [limits], CALIBRATION, 0)
    values: dict[Profile, float] = {}
    while asked := searcher.ask():
        answers = list(evaluator.evaluate(asked))
        values |= {
            e.trial.profile: e.fitness for e in answers if e.trial.fidelity == Fidelity(0, 0, 2, LENGTH)
        }
        confirmed = [t.profile for t in asked if t.fidelity == CALIBRATION.archive and t.profile in values]
        incumbent = searcher.incumbent(0)
        for profile in confirmed:
            assert values[profile] < values[incumbent]
        searcher.tell(answers)
    assert values


@pytest.mark.parametrize("sensitivities", ["slopes", "measured"])
@pytest.mark.parametrize("patience", [1, 2])
def test_a_budget_rests_after_rounds_without_improvement(patience: int, sensitivities: str) -> None:
    space = bits_space(blocks=2)
    budgets = [bits_limits(space, bits) for bits in (3, 4)]
    config = small(rounds=50, patience=patience, sensitivities=sensitivities)
    searcher = FrontierSearcher(config, space, budgets, CALIBRATION, 0)
    finish(searcher, ToyEvaluator(space, constant=True))
    assert searcher.state_dict()["method"]["rounds"] == [patience, patience]


def test_no_rounds_is_the_allocation_alone() -> None:
    space = bits_space(blocks=2)
    limits = bits_limits(space)
    evaluator = ToyEvaluator(space, seed=3)
    searcher = FrontierSearcher(small(rounds=0), space, [limits], CALIBRATION, 0)
    trials = finish(searcher, evaluator)
    assert [isinstance(t, SlopeTrial) for t in trials] == [True, False, False]
    assert searcher.best == evaluator.optimum(limits)[0]


def test_drops_and_all_else_on_request_are_measured_one_at_a_time() -> None:
    space = bits_space(blocks=2)
    cases = [
        (space, bits_limits(space), small(sensitivities="measured")),
        (drop_space(), drop_limits(drop_space()), small()),
    ]
    for searched, limits, config in cases:
        trials = finish(FrontierSearcher(config, searched, [limits], CALIBRATION, 0), ToyEvaluator(searched))
        assert not any(isinstance(t, SlopeTrial) for t in trials)


def test_slopes_that_fail_are_replaced_by_measurements_or_passed_over() -> None:
    space = bits_space(blocks=2)
    limits = bits_limits(space)
    for dense_fails in (True, False):
        evaluator = ToyEvaluator(space, seed=1)
        searcher = FrontierSearcher(small(), space, [limits], CALIBRATION, 0)
        while asked := searcher.ask():
            searcher.tell(
                [
                    Evaluation(e.trial, (), (), error="a slope is not finite")
                    if isinstance(e.trial, SlopeTrial) and (e.trial.profile == DENSE) == dense_fails
                    else e
                    for e in evaluator.evaluate(asked)
                ]
            )
        assert searcher.best is not None
        assert evaluator.true(searcher.best) == pytest.approx(evaluator.optimum(limits)[1], abs=1e-12)


@pytest.mark.parametrize("name", ["bits", "drop", pytest.param("joint", marks=pytest.mark.slow), "ladder"])
@pytest.mark.parametrize("sensitivities", ["slopes", "measured"])
def test_a_pool_that_is_all_archive_is_enough(name: str, sensitivities: str) -> None:
    """Then what is measured around a profile is archived at once, and may be better than it."""
    make, make_limits = SPACES[name]
    space = make()
    limits = make_limits(space)
    for seed in range(6):
        evaluator = ToyEvaluator(space, seed, interaction=1.0, noise=0.1)
        whole = CalibrationSequences(4, LENGTH, Fidelity(0, 0, 4, LENGTH))
        config = small(around=4 * LENGTH, check=4 * LENGTH, sensitivities=sensitivities)
        searcher = FrontierSearcher(config, space, [limits], whole, seed)
        work = searcher.workload()
        trials = finish(searcher, evaluator)
        assert searcher.best is not None
        assert len(trials) <= work.trials
        looks = [t for t in trials if isinstance(t, SlopeTrial)]
        assert len({(t.profile, t.fidelity) for t in looks}) == len(looks)


class Flat(ToyEvaluator):
    """An evaluator whose slopes show every move as equally bad."""

    def slopes(self, trial: Trial) -> Slopes:
        found = super().slopes(trial)
        none, bad = (
            {unit: dict.fromkeys(row, value) for unit, row in found.first.items()} for value in (0.0, 1.0)
        )
        return Slopes(none, bad)


def test_exchanges_find_what_no_slope_shows() -> None:
    space = bits_space(blocks=3)
    limits = bits_limits(space)
    for seed in range(3):
        evaluator = Flat(space, seed)
        best = []
        for offspring in (0, 8):
            searcher = FrontierSearcher(small(offspring=offspring), space, [limits], CALIBRATION, seed)
            finish(searcher, evaluator)
            assert searcher.best is not None
            best.append(evaluator.true(searcher.best))
        assert best[1] < best[0]


def test_seeds_draw_other_offspring() -> None:
    space = bits_space(blocks=12)
    limits = bits_limits(space)
    runs = [
        finish(FrontierSearcher(small(), space, [limits], CALIBRATION, seed), ToyEvaluator(space, noise=0.1))
        for seed in (1, 2)
    ]
    assert runs[0] != runs[1]


def test_refuses_to_search_without_a_budget() -> None:
    with pytest.raises(ValueError, match="frontier needs a limit; give at least one budget"):
        FrontierSearcher(small(), bits_space(), [], CALIBRATION, 0)


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_rounds_are_scattered_over_the_budgets(count: int) -> None:
    space = bits_space(blocks=2)
    budgets = [{"bits": space.cost(space.extreme("bits"), "bits") + i} for i in range(count)]
    order = FrontierSearcher(small(), space, budgets, CALIBRATION, 0).order
    assert sorted(order) == list(range(count))
    assert order[: min(count, 4)] == [0, 8, 4, 2][:4] if count == 12 else order[0] == 0
