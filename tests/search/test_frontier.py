from collections.abc import Sequence

import pytest

from paretopress.evaluators.trial import Fidelity
from paretopress.search.dp import DPConfig, DPSearcher
from paretopress.search.frontier import FrontierConfig, FrontierSearcher
from paretopress.search.turns import Turns
from paretopress.spaces.space import Limits, Profile, Space
from tests.contracts.searcher import SearcherContract, finish
from tests.toys import LENGTH, POOL, SPACES, ToyEvaluator, bits_limits, bits_space


class TestFrontier(SearcherContract):
    random = False  # a tiny space has so few offspring that every seed screens the same ones
    within = False

    def make(self, space: Space, limits: Limits, seed: int, start: Sequence[Profile] = ()) -> Turns:
        return FrontierSearcher(small(), space, [limits], POOL, seed, start)


def small(**settings: int) -> FrontierConfig:
    usual = {"tokens": LENGTH, "around": 2 * LENGTH, "check": 2 * LENGTH, "offspring": 4, "cycles": 3}
    return FrontierConfig(**(usual | settings))


@pytest.mark.parametrize("name", [name for name in SPACES if name != "ladder"])
def test_finds_the_optimum_of_additive_errors(name: str) -> None:
    make, make_limits = SPACES[name]
    space = make()
    limits = make_limits(space)
    evaluator = ToyEvaluator(space, seed=5)
    searcher = FrontierSearcher(small(), space, [limits], POOL, 0)
    finish(searcher, evaluator)
    assert searcher.best is not None
    assert evaluator.true(searcher.best) == pytest.approx(evaluator.optimum(limits)[1], abs=1e-12)


def test_interactions_are_found_that_one_set_of_sensitivities_does_not_see() -> None:
    space = bits_space(blocks=6)
    limits = bits_limits(space)
    ahead = 0.0
    for seed in range(8):
        evaluator = ToyEvaluator(space, seed, interaction=1.0, noise=0.1)
        frontier = FrontierSearcher(small(), space, [limits], POOL, 0)
        dp = DPSearcher(DPConfig(tokens=LENGTH), space, limits, POOL, 0)
        for searcher in (frontier, dp):
            finish(searcher, evaluator)
        assert frontier.best is not None
        assert dp.best is not None
        ahead += evaluator.true(dp.best) / evaluator.true(frontier.best) - 1
    assert ahead / 8 > 0.02


def test_one_survey_serves_every_budget_and_no_winner_loses_to_a_cheaper_one() -> None:
    space = bits_space(blocks=3)
    budgets = [bits_limits(space, bits) for bits in (4, 2, 5, 3)]
    evaluator = ToyEvaluator(space, seed=2, interaction=0.5, noise=0.05)
    searcher = FrontierSearcher(small(), space, budgets, POOL, 0)
    survey = searcher.ask()
    trials = finish(searcher, evaluator)
    dearest = space.extreme("bits", largest=True)
    assert [t.profile for t in survey if t.fidelity.sequences == 1].count(dearest) == 1
    assert all(t.profile != dearest for t in trials[len(survey) :])
    best = []
    for limits in sorted(budgets, key=lambda limits: limits["bits"]):
        fitting = [f for p, f in searcher.archived.items() if space.fits(p, limits)]
        best.append(min(fitting))
        assert best[-1] <= searcher.archived[space.canonical(space.uniform(limits))]
        assert searcher.archived[space.canonical(searcher.incumbent(budgets.index(limits)))] == best[-1]
    assert best == sorted(best, reverse=True)


def test_measures_on_text_behind_the_archive_and_compares_on_the_archive() -> None:
    space = bits_space(blocks=2)
    searcher = FrontierSearcher(small(), space, [bits_limits(space)], POOL, 0)
    trials = finish(searcher, ToyEvaluator(space, interaction=0.5, noise=0.1))
    check = Fidelity(0, 0, 2, LENGTH)
    assert {t.fidelity for t in trials if t.fidelity.start < POOL.archive.stop} == {POOL.archive, check}
    windows = [t.fidelity for t in trials if t.fidelity.start >= POOL.archive.stop]
    assert windows[0].sequences == 1
    assert {f.sequences for f in windows[1:]} <= {1, 2}
    assert len(set(windows)) > 2


def test_only_what_wins_its_check_is_measured_on_the_archive() -> None:
    space = bits_space(blocks=3)
    limits = bits_limits(space)
    evaluator = ToyEvaluator(space, seed=1, interaction=1.0, noise=0.3)
    searcher = FrontierSearcher(small(), space, [limits], POOL, 0)
    values: dict[Profile, float] = {}
    while asked := searcher.ask():
        answers = list(evaluator.evaluate(asked))
        values |= {
            e.trial.profile: e.fitness for e in answers if e.trial.fidelity == Fidelity(0, 0, 2, LENGTH)
        }
        confirmed = [t.profile for t in asked if t.fidelity == POOL.archive and t.profile in values]
        incumbent = searcher.incumbent(0)
        for profile in confirmed:
            assert values[profile] < values[incumbent]
        searcher.tell(answers)
    assert values


@pytest.mark.parametrize("patience", [1, 3])
def test_ends_after_cycles_without_improvement(patience: int) -> None:
    space = bits_space(blocks=2)
    budgets = [bits_limits(space, bits) for bits in (3, 4)]
    searcher = FrontierSearcher(small(cycles=50, patience=patience), space, budgets, POOL, 0)
    finish(searcher, ToyEvaluator(space, constant=True))
    assert searcher.state_dict()["method"]["round"] == patience * len(budgets)


def test_no_cycles_is_the_allocation_alone() -> None:
    space = bits_space(blocks=2)
    limits = bits_limits(space)
    evaluator = ToyEvaluator(space, seed=3)
    searcher = FrontierSearcher(small(cycles=0), space, [limits], POOL, 0)
    trials = finish(searcher, evaluator)
    assert len(trials) == 1 + 3 * len(space.units) + 2
    assert searcher.best == evaluator.optimum(limits)[0]


def test_seeds_draw_other_offspring() -> None:
    space = bits_space(blocks=12)
    limits = bits_limits(space)
    runs = [
        finish(FrontierSearcher(small(), space, [limits], POOL, seed), ToyEvaluator(space, noise=0.1))
        for seed in (1, 2)
    ]
    assert runs[0] != runs[1]


def test_refuses_to_search_without_a_budget() -> None:
    with pytest.raises(ValueError, match="frontier needs a limit; give at least one budget"):
        FrontierSearcher(small(), bits_space(), [], POOL, 0)


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_rounds_are_scattered_over_the_budgets(count: int) -> None:
    space = bits_space(blocks=2)
    budgets = [{"bits": space.cost(space.extreme("bits"), "bits") + i} for i in range(count)]
    order = FrontierSearcher(small(), space, budgets, POOL, 0).order
    assert sorted(order) == list(range(count))
    assert order[: min(count, 4)] == [0, 8, 4, 2][:4] if count == 12 else order[0] == 0
