"""What every searcher promises, whatever its method."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence

import pytest

from paretopress.evaluators.trial import Trial
from paretopress.search.asking.turns import Turns
from paretopress.spaces.space import Limits, Profile, Space
from tests.toys import CALIBRATION, SPACES, ToyEvaluator

MOST_TURNS = 500


def finish(searcher: Turns, evaluator: ToyEvaluator) -> list[Trial]:
    """Run to the end; all trials."""
    trials: list[Trial] = []
    for _ in range(MOST_TURNS):
        asked = searcher.ask()
        if not asked:
            return trials
        trials += asked
        searcher.tell(list(evaluator.evaluate(asked)))
    raise AssertionError(f"not finished after {MOST_TURNS} turns")


class SearcherContract(ABC):
    """Subclass as `class TestX(SearcherContract)` and give `make`.

    Attributes:
        random: whether another seed must search elsewhere.
        within: whether every profile asked keeps within the limits, not only those at the archive's fidelity.
    """

    random = True
    within = True

    @abstractmethod
    def make(self, space: Space, limits: Limits, seed: int, start: Sequence[Profile] = ()) -> Turns:
        """A small search of this method."""

    @pytest.fixture(params=SPACES)
    def setting(self, request: pytest.FixtureRequest) -> tuple[Space, Limits]:
        """One of the toy spaces with its limits."""
        space, limits = SPACES[request.param]
        built = space()
        return built, limits(built)

    def test_keeps_within_the_limits(self, setting: tuple[Space, Limits]) -> None:
        space, limits = setting
        trials = finish(self.make(space, limits, 1), ToyEvaluator(space, noise=0.1))
        for trial in trials:
            if self.within or trial.fidelity == CALIBRATION.archive:
                assert space.fits(trial.profile, limits)

    def test_measures_uniform_and_its_best_on_the_archive(self, setting: tuple[Space, Limits]) -> None:
        space, limits = setting
        searcher = self.make(space, limits, 1)
        trials = finish(searcher, ToyEvaluator(space, interaction=0.2, noise=0.1))
        measured = {space.canonical(t.profile) for t in trials if t.fidelity == CALIBRATION.archive}
        assert space.canonical(space.uniform(limits)) in measured
        assert searcher.best in measured

    def test_numbers_its_trials_in_order(self, setting: tuple[Space, Limits]) -> None:
        space, limits = setting
        trials = finish(self.make(space, limits, 1), ToyEvaluator(space))
        assert [trial.number for trial in trials] == list(range(len(trials)))

    def test_same_seed_same_trials(self, setting: tuple[Space, Limits]) -> None:
        space, limits = setting
        evaluator = ToyEvaluator(space, interaction=0.2, noise=0.1)
        first = finish(self.make(space, limits, 7), evaluator)
        assert finish(self.make(space, limits, 7), evaluator) == first

    def test_other_seed_other_trials(self) -> None:
        if not self.random:
            pytest.skip("deterministic method")
        space, limits = SPACES["bits"]
        built = space()
        evaluator = ToyEvaluator(built, noise=0.1)
        runs = [finish(self.make(built, limits(built), seed), evaluator) for seed in (1, 2)]
        assert runs[0] != runs[1]

    def test_resumes_exactly_at_every_point(self, setting: tuple[Space, Limits]) -> None:
        space, limits = setting
        evaluator = ToyEvaluator(space, interaction=0.2, noise=0.1)
        whole = finish(self.make(space, limits, 3), evaluator)
        searcher, trials = self.make(space, limits, 3), list[Trial]()
        for _ in range(MOST_TURNS):
            asked = searcher.ask()
            if not asked:
                break
            searcher = self._restored(searcher, space, limits)
            assert searcher.ask() == asked
            searcher.tell(list(evaluator.evaluate(asked)))
            searcher = self._restored(searcher, space, limits)
            trials += asked
        assert trials == whole

    def _restored(self, searcher: Turns, space: Space, limits: Limits) -> Turns:
        state = json.loads(json.dumps(searcher.state_dict(), allow_nan=False))
        other = self.make(space, limits, 99)
        other.load_state_dict(state)
        assert json.loads(json.dumps(other.state_dict(), allow_nan=False)) == state
        return other

    def test_survives_errors(self, setting: tuple[Space, Limits]) -> None:
        space, limits = setting
        evaluator = ToyEvaluator(space, broken=lambda profile: sum(profile) % 3 == 0)
        finish(self.make(space, limits, 1), evaluator)

    def test_survives_nothing_but_errors(self, setting: tuple[Space, Limits]) -> None:
        space, limits = setting
        searcher = self.make(space, limits, 1)
        finish(searcher, ToyEvaluator(space, broken=lambda profile: True))
        assert searcher.best is None

    def test_survives_a_constant_objective(self, setting: tuple[Space, Limits]) -> None:
        space, limits = setting
        finish(self.make(space, limits, 1), ToyEvaluator(space, constant=True))

    def test_starts_from_given_profiles(self) -> None:
        space, limits = SPACES["joint"]
        built = space()
        start = ToyEvaluator(built).optimum(limits(built))[0]
        searcher = self.make(built, limits(built), 1, [start])
        finish(searcher, ToyEvaluator(built))
        assert searcher.best == built.canonical(start)

    def test_refuses_a_start_over_the_limits(self) -> None:
        space, limits = SPACES["bits"]
        built = space()
        with pytest.raises(ValueError, match=r"a start profile costs \d+ bits, over the limit of"):
            self.make(built, limits(built), 1, [built.extreme("bits", largest=True)])

    def test_refuses_answers_to_other_trials(self) -> None:
        space, limits = SPACES["drop"]
        built = space()
        searcher = self.make(built, limits(built), 1)
        answers = list(ToyEvaluator(built).evaluate(searcher.ask()))
        with pytest.raises(ValueError, match="tell all in the order of `ask`"):
            searcher.tell(answers[1:])

    def test_workload_is_an_upper_bound(self, setting: tuple[Space, Limits]) -> None:
        space, limits = setting
        searcher = self.make(space, limits, 1)
        work = searcher.workload()
        trials = finish(searcher, ToyEvaluator(space, noise=0.1))
        assert len(trials) <= work.trials
        assert sum(trial.fidelity.tokens for trial in trials) <= work.tokens
