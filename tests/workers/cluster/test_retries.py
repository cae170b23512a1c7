"""What is tried again."""

import pytest

from paretopress.evaluators.slopes.slope_trial import SlopeTrial
from paretopress.evaluators.trial import Evaluation, Trial
from paretopress.workers.cluster.retries import Task, settle
from tests.toys import bits_space
from tests.workers.simulation.simulations import at, random_profiles

TRIALS = [Trial(n, p, at(0, 2)) for n, p in enumerate(random_profiles(bits_space(), 3))]


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_trials_fail_twice_together_and_then_alone(retries: int) -> None:
    tasks, given, failures = [Task(TRIALS)], list[Evaluation](), 0
    while tasks:
        task = tasks.pop(0)
        failures += 1
        again, answers = settle(task, "bad luck", retries)
        tasks, given = tasks + again, given + answers
    assert failures == 2 + len(TRIALS) * (1 + retries)
    assert [e.trial for e in given] == TRIALS
    assert {e.error for e in given} == {"bad luck"}


def test_values_that_are_not_finite_are_asked_once_more() -> None:
    good = Evaluation(TRIALS[0], (1.0, 1.0), (2.0, 2.0))
    odd = Evaluation(TRIALS[1], (), (), error="not finite")
    (again,), given = settle(Task(TRIALS[:2]), [good, odd], 3)
    assert (given, again.trials) == ([good], [TRIALS[1]])
    assert settle(again, [odd], 3) == ([], [odd])


def test_slopes_are_not_answered_with_an_error() -> None:
    slopes = SlopeTrial(0, TRIALS[0].profile, at(0, 2))
    ((again,), given) = settle(Task([slopes]), "bad luck", 1)
    assert given == []
    with pytest.raises(
        ConnectionError, match="slopes failed 2 times: bad luck; give the same command to go on"
    ):
        settle(again, "bad luck", 1)
