"""What the guides make of slopes and measurements, against plain definitions."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from paretopress.evaluators.slopes.slope_trial import SlopeEvaluation, Slopes, SlopeTrial
from paretopress.evaluators.trial import Fidelity
from paretopress.search.frontier.slope_guide import CAUTION, CURVATURE, SlopeGuide, has_slopes
from paretopress.search.frontier.stepping import single_steps
from paretopress.spaces.space import DENSE, Profile, Space
from tests.toys import LENGTH, ToyEvaluator, bits_space, drop_space, everything, joint_space

SURVEY = Fidelity(0, 0, 1, LENGTH)


def slopes(evaluator: ToyEvaluator, profile: Profile) -> Slopes:
    (answer,) = evaluator.evaluate([SlopeTrial(0, profile, SURVEY)])
    assert isinstance(answer, SlopeEvaluation)
    assert answer.slopes is not None
    return answer.slopes.mean()


def surveyed(space: Space, evaluator: ToyEvaluator) -> SlopeGuide:
    guide = SlopeGuide(space)
    guide.take(None, SURVEY, slopes(evaluator, DENSE))
    return guide


def summed(space: Space, errors_UL: np.ndarray, profile: Profile) -> float:
    """Errors of the units that count."""
    return math.fsum(errors_UL[u, n] for u, n in enumerate(profile) if space.active(profile, u))


@pytest.mark.parametrize("make", [bits_space, joint_space])
def test_around_the_dense_model_additive_errors_order_all_profiles(make: Callable[[], Space]) -> None:
    space = make()
    evaluator = ToyEvaluator(space, seed=4)
    errors_UL = surveyed(space, evaluator).first_errors()
    dense = evaluator.true(space.extreme(space.kinds[0], largest=True))
    profiles = [p for i, p in enumerate(everything(space)) if i % 7 == 0]
    for profile in profiles:
        assert dense + summed(space, errors_UL, profile) == pytest.approx(evaluator.true(profile))


def test_around_a_profile_second_order_is_scaled_and_the_base_costs_nothing() -> None:
    space = bits_space(1)
    guide = surveyed(space, ToyEvaluator(space))
    base = (1, 2, 0)
    names = [unit.name for unit in space.units]
    first = {name: {"w2": 1.0, "w3": -2.0, "w6": -3.0} for name in names}
    second = {name: {"w2": 0.5, "w3": 0.25, "w6": 4.0} for name in names}
    guide.take(base, SURVEY, Slopes(first, second))
    errors_UL = guide.errors(base, curvature=2.0)
    assert errors_UL[np.arange(3), base].tolist() == [0.0, 0.0, 0.0]
    assert errors_UL[1].tolist() == [2.0, -1.5, 0.0, 5.0]
    # What has no slope here is known from around the dense model.
    dense_UL = guide.first_errors()
    assert errors_UL[0, 2] == pytest.approx(dense_UL[0, 2] - dense_UL[0, 1])


def test_slopes_around_one_profile_are_averaged_by_their_tokens_and_others_are_not_used() -> None:
    space = bits_space(1)
    guide = surveyed(space, ToyEvaluator(space))
    base, other = (1, 1, 1), (2, 1, 1)

    def take(profile: Profile, start: int, stop: int, value: float) -> None:
        row = {"w2": value, "w4": value, "w6": value}
        none = {unit.name: dict.fromkeys(row, 0.0) for unit in space.units}
        guide.take(
            profile, Fidelity(0, start, stop, LENGTH), Slopes({unit.name: row for unit in space.units}, none)
        )

    take(base, 8, 9, 1.0)
    take(base, 9, 12, 5.0)
    take(other, 8, 17, 9.0)
    assert guide.errors(base)[:, 0].tolist() == [4.0, 4.0, 4.0]
    assert guide.errors(other)[1:, 0].tolist() == [9.0, 9.0]
    assert guide.knows(base, Fidelity(0, 8, 9, LENGTH))
    assert not guide.knows(base, Fidelity(0, 8, 10, LENGTH))
    again = SlopeGuide(space)
    again.load_state_dict(json.loads(json.dumps(guide.state_dict())))
    assert np.array_equal(again.errors(base), guide.errors(base))
    take(base, 8, 10, 7.0)  # holds the first one's text
    assert guide.errors(base)[0, 0] == pytest.approx((3 * 5.0 + 2 * 7.0) / 5)
    guide.forget(but=[other])
    assert guide.errors(base)[0, 0] not in (4.0, 5.8)
    assert guide.errors(other)[1, 0] == 9.0


def test_tables_are_bold_and_cautious() -> None:
    space = bits_space(2)
    evaluator = ToyEvaluator(space, seed=1)
    guide = surveyed(space, evaluator)
    base = (1,) * 6
    guide.take(base, SURVEY, slopes(evaluator, base))
    tables = guide.tables(base, 1.0)
    assert len(tables) == guide.proposals == len(CURVATURE) + len(CAUTION)
    assert all(np.isfinite(table).all() for table in tables[: len(CURVATURE)])
    for table in tables[len(CURVATURE) :]:
        assert np.isinf(table[:, 3]).all()
        assert (table[:, 1] == 0).all()


def test_single_steps_gain_something_or_stay() -> None:
    space = bits_space(1)
    errors_UL = np.array([[4.0, 1.0, 0.0, -1.0], [3.0, 2.0, 1.5, 0.0], [9.0, 5.0, 2.0, 1.0]])
    base = (1, 2, 0)
    steps = np.array([3.0, -1.0, 0.5, -1.5, -4.0])
    near_UL = single_steps(space, errors_UL, base, 0.5)
    low, high = np.quantile(steps, (0.16, 0.84))
    more = 0.5 * (high - low) / 2
    inf = math.inf
    expected = [
        [3 + more, 0.0, -1 + more, inf],
        [inf, 0.5 + more, 0.0, -1.5 + more],
        [0.0, -4 + more, inf, inf],
    ]
    np.testing.assert_allclose(near_UL, expected)


def test_a_failed_measurement_makes_no_step_dearer() -> None:
    space = bits_space(4)
    errors_UL = np.random.default_rng(0).normal(size=(12, 4))
    base = (1,) * 12
    plain_UL = single_steps(space, errors_UL, base, 1.0)
    errors_UL[0, 0] = 1e6
    found_UL = single_steps(space, errors_UL, base, 1.0)
    np.testing.assert_allclose(found_UL[1:, 0], plain_UL[1:, 0], atol=0.5)


def test_around_the_dense_model_both_orders_count() -> None:
    space = bits_space(1)
    guide = SlopeGuide(space)
    rows = {unit.name: {"w2": 0.5, "w3": 0.25, "w4": 0.125, "w6": 0.0} for unit in space.units}
    guide.take(None, SURVEY, Slopes(rows, rows))
    assert guide.first_errors()[1].tolist() == [1.0, 0.5, 0.25, 0.0]


def test_slopes_are_asked_where_layers_have_levels_inside_blocks() -> None:
    assert has_slopes(bits_space())
    assert has_slopes(joint_space())
    assert not has_slopes(drop_space())
