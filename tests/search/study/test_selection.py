import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretopress.evaluators.trial import Evaluation, Trial
from paretopress.search.study.archive import ParetoArchive
from paretopress.search.study.selection import (
    Contest,
    Finalist,
    choose,
    document_means,
    finalists,
    holm,
    sign_flip,
)
from tests.toys import CALIBRATION, ToyEvaluator, bits_limits, bits_space, everything


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1))
def test_holm_rejects_what_its_definition_rejects(p_values: list[float], level: float) -> None:
    rejected = set()
    ordered = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, i in enumerate(ordered):
        if min(p_values[i] * (len(p_values) - rank), 1.0) > level:
            break
        rejected.add(i)
    assert {i for i, a in enumerate(holm(p_values)) if a <= level} == rejected


def test_holm_of_nothing_is_nothing() -> None:
    assert holm([]) == []


@given(st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=9))
def test_the_exact_test_counts_all_signs(gains: list[float]) -> None:
    sums = [
        sum(s * g for s, g in zip(signs, gains, strict=True))
        for signs in itertools.product((1, -1), repeat=len(gains))
    ]
    expected = sum(s >= sum(gains) for s in sums) / len(sums)
    assert sign_flip(np.array(gains), 0) == pytest.approx(expected)


def test_sampled_signs_agree_with_the_exact_test() -> None:
    rng = np.random.default_rng(0)
    gains = rng.normal(0.3, 1.0, size=17)
    exact = np.mean([(1 - 2 * (np.arange(2**17)[:, None] >> np.arange(17) & 1)) @ gains >= gains.sum()])
    assert sign_flip(gains, 0) == pytest.approx(float(exact), abs=0.015)
    assert sign_flip(gains, 0) == sign_flip(gains, 0)
    assert sign_flip(np.ones(40), 0) == pytest.approx(1 / 10_000)


def test_p_values_are_uniform_without_an_effect() -> None:
    rng = np.random.default_rng(1)
    p = np.array([sign_flip(rng.normal(size=12), 0) for _ in range(400)])
    for level in (0.05, 0.25, 0.5, 0.75):
        assert (p <= level).mean() == pytest.approx(level, abs=0.08)


def test_means_are_of_documents() -> None:
    assert document_means([1.0, 3.0, 7.0], [5, 5, 9]).tolist() == [2.0, 7.0]


def contest(gains: list[float], documents: int = 24, seed: int = 0) -> Contest:
    rng = np.random.default_rng(seed)
    base = rng.normal(1.0, 0.2, size=documents)
    rivals = [
        Finalist((n + 1,), tuple(base - gain + rng.normal(0, 0.05, size=documents)))
        for n, gain in enumerate(gains)
    ]
    return Contest(Finalist((0,), tuple(base)), rivals, range(documents))


def test_the_best_significant_finalist_wins() -> None:
    (choice,) = choose([contest([0.1, 0.3, 0.0])], 0)
    assert (choice.profile, choice.significant) == ((2,), True)
    assert [v.profile for v in choice.verdicts] == [(1,), (2,), (3,)]
    assert choice.verdicts[1].gain == pytest.approx(0.3, abs=0.05)
    assert choice.verdicts[1].adjusted <= 0.05 < choice.verdicts[2].adjusted


def test_uniform_wins_without_significance() -> None:
    (choice,) = choose([contest([0.0, -0.2])], 0)
    assert (choice.profile, choice.significant) == ((0,), False)
    (alone,) = choose([contest([])], 0)
    assert (alone.profile, alone.significant) == ((0,), False)


def test_nothing_is_claimed_from_few_documents() -> None:
    (choice,) = choose([contest([0.5], documents=19)], 0)
    assert (choice.profile, choice.significant) == ((0,), None)
    assert choice.verdicts[0].p < 0.01


def test_holm_runs_over_all_budgets() -> None:
    one = choose([contest([0.014], seed=2)], 0)[0].verdicts[0]
    many = choose([contest([0.014], seed=2), *[contest([0.0] * 4, seed=s) for s in range(3, 6)]], 0)
    assert many[0].verdicts[0].p == one.p
    assert many[0].verdicts[0].adjusted > one.adjusted


def test_false_claims_stay_rare_over_a_whole_run() -> None:
    claims = [
        any(c.significant for c in choose([contest([0.0] * 3, seed=s), contest([0.0] * 3, seed=1000 + s)], s))
        for s in range(60)
    ]
    assert sum(claims) <= 8


def test_refuses_values_that_do_not_match() -> None:
    short = Contest(Finalist((0,), (1.0,)), [], (1, 2))
    with pytest.raises(ValueError, match="1 validation values for 2 sequences"):
        choose([short], 0)
    failed = Contest(Finalist((0,), (1.0, float("nan"))), [], (1, 2))
    with pytest.raises(ValueError, match="not finite"):
        choose([failed], 0)


def test_finalists_are_at_most_four_and_better_than_uniform_on_calibration() -> None:
    space = bits_space(blocks=1)
    limits = bits_limits(space)
    evaluator = ToyEvaluator(space, seed=3)
    archive = ParetoArchive(space, "bits", CALIBRATION.archive)
    profiles = list(everything(space))
    archive.add(
        Evaluation(Trial(i, p, CALIBRATION.archive), (evaluator.true(p),), (1.0,))
        for i, p in enumerate(profiles)
    )
    uniform = space.uniform(limits)
    chosen = finalists(archive, limits, uniform)
    better = sorted(
        (p for p in profiles if space.fits(p, limits) and evaluator.true(p) < evaluator.true(uniform)),
        key=evaluator.true,
    )
    assert chosen == better[:4]
    assert finalists(archive, limits, better[1]) == better[:1]
