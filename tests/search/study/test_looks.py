"""Looks at validation: when they are taken, what they compare, when they end a search."""

import itertools
import json
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.evaluators.text.packing import Sequences
from paretopress.evaluators.trial import Evaluation, Fidelity, Trial
from paretopress.search.study.archive import Entry, ParetoArchive
from paretopress.search.study.looks import Look, Looks, look_rows
from paretopress.spaces.space import Profile
from tests.toys import LENGTH, bits_limits, bits_space

SPACE = bits_space()
BUDGETS = {"small": bits_limits(SPACE, 3), "large": bits_limits(SPACE, 6)}
DOCUMENTS = 24
COST = DOCUMENTS * LENGTH
ARCHIVE = Fidelity(0, 0, 1, LENGTH)
PROFILES = list(itertools.product((0, 1), repeat=len(SPACE.units)))
"""All within both budgets."""


def validation(documents: int = DOCUMENTS) -> Sequences:
    tokens = np.zeros((documents, LENGTH), np.int32)
    return Sequences("validation", tokens, np.arange(documents, dtype=np.int32))


def entry(profile: Profile, fitness: float) -> Entry:
    archive = ParetoArchive(SPACE, "bits", ARCHIVE)
    archive.add([Evaluation(Trial(0, profile, ARCHIVE), (fitness,), (1.0,))])
    return archive.entries[0]


class Text:
    """Validation values of profiles: a level, and the same noise of each document for all, and a little of its own."""

    def __init__(
        self, level: Callable[[Profile], float], own: float = 0.01, documents: int = DOCUMENTS
    ) -> None:
        self.level = level
        self.own = own
        self.documents = np.random.default_rng(1).normal(0.0, 0.3, documents)
        self.asked: list[Trial] = []

    def __call__(self, trials: Sequence[Trial]) -> list[Evaluation]:
        self.asked += trials
        return [self._answer(trial) for trial in trials]

    def _answer(self, trial: Trial) -> Evaluation:
        level = self.level(trial.profile)
        if math.isinf(level):
            return Evaluation(trial, (), (), error="failed")
        noise = np.random.default_rng(list(trial.profile)).normal(0.0, self.own, len(self.documents))
        values = level * (1.0 + self.documents) + noise
        return Evaluation(trial, tuple(values.tolist()), (1.0,) * len(values))


def looks(patience: int | None = 3, documents: int = DOCUMENTS, seed: int = 0) -> Looks:
    return Looks(SPACE, BUDGETS, validation(documents), seed=seed, patience=patience)


def follow(found: Looks, text: Text, falls: Sequence[float], first: int = 0) -> list[bool]:
    """One look for each calibration value, of ever new profiles; whether the search should end after each."""
    ended = []
    for i, fitness in enumerate(falls, first):
        found.note([entry(PROFILES[i], fitness)])
        found.take((i + 1) * 100 * COST, text)
        ended.append(found.over)
    return ended


def test_the_best_of_every_budget_is_what_the_archive_says() -> None:
    archive, found = ParetoArchive(SPACE, "bits", ARCHIVE), looks()
    rng = np.random.default_rng(3)
    for _ in range(40):
        profile = tuple(int(n) for n in rng.integers(0, 4, len(SPACE.units)))
        evaluation = Evaluation(Trial(0, profile, ARCHIVE), (round(rng.random(), 1),), (1.0,))
        found.note(archive.newest(archive.add([evaluation])))
        text = Text(lambda profile: 1.0)
        found.take(len(found.taken) + 1, text)
        best = {name: archive.best(limits) for name, limits in BUDGETS.items()}
        wanted = [(name, SPACE.key(e.profile), e.fitness) for name, e in best.items() if e]
        tokens = max((look.tokens for look in found.taken), default=0)
        last = [look for look in found.taken if look.tokens == tokens]
        assert [(look.budget, look.model, look.calibration) for look in last] == wanted
        assert {trial.profile for trial in text.asked} >= {e.profile for e in best.values() if e}


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 40 * COST), min_size=1, max_size=len(PROFILES)))
def test_looks_cost_a_quarter_at_most_and_their_number_is_logarithmic(steps: list[int]) -> None:
    found, text, tokens, taken = looks(), Text(lambda profile: 1.0), 0, []
    for i, (step, profile) in enumerate(zip(steps, PROFILES, strict=False)):
        tokens += step
        found.note([entry(profile, 1.0 / (i + 2))])
        if found.due(tokens):
            found.take(tokens, text)
            taken.append(tokens)
    models = {look.model for look in found.taken}
    assert len(models) * COST <= 0.25 * tokens
    assert all(b >= 1.5 * a for a, b in itertools.pairwise(taken))
    assert bool(taken) or tokens < 8 * COST


def test_nothing_is_looked_at_twice_without_a_change() -> None:
    found = looks()
    assert not found.due(10**12)
    found.note([entry(PROFILES[0], 1.0)])
    assert found.due(10**12)
    found.take(10**12, Text(lambda profile: 1.0))
    found.note([entry(PROFILES[1], 1.5)])
    assert not found.due(10**15)
    found.note([entry(PROFILES[2], 0.5)])
    assert found.due(10**15)


def test_gains_on_calibration_alone_end_the_search() -> None:
    found = looks(3)
    assert follow(found, Text(lambda profile: 1.0), [1.0, 0.9, 0.8, 0.7]) == [False, False, False, True]
    patient = looks(None)
    assert not any(follow(patient, Text(lambda profile: 1.0), [1.0 - i / 40 for i in range(30)]))


def test_gains_that_hold_keep_it_going() -> None:
    level = {profile: 1.0 - 0.02 * i for i, profile in enumerate(PROFILES)}
    assert not any(follow(looks(1), Text(level.__getitem__), [1.0 - i / 40 for i in range(20)]))


def test_small_gains_add_up() -> None:
    """Each is lost in the noise of a look; a few together are not."""
    level = {profile: 1.0 - 0.008 * i for i, profile in enumerate(PROFILES)}
    text = Text(level.__getitem__, own=0.02)
    assert True in follow(looks(1), text, [1.0 - i / 40 for i in range(20)])
    assert not any(follow(looks(4), text, [1.0 - i / 40 for i in range(20)]))


def test_chance_rarely_keeps_a_search_going() -> None:
    ends = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        shift = {profile: rng.normal(0.0, 0.01, DOCUMENTS) for profile in PROFILES}
        found = looks(3, seed=seed)

        def measure(trials: Sequence[Trial], shift: dict[Profile, np.ndarray] = shift) -> list[Evaluation]:
            values = [tuple((1.0 + shift[trial.profile]).tolist()) for trial in trials]
            return [Evaluation(t, v, (1.0,) * len(v)) for t, v in zip(trials, values, strict=True)]

        for i in range(12):
            found.note([entry(PROFILES[i], 1.0 - i / 40)])
            found.take((i + 1) * 100 * COST, measure)
            if found.over:
                ends.append(i)
                break
    assert len(ends) == 40
    assert ends.count(3) >= 28


def test_few_documents_conclude_nothing() -> None:
    falls = [1.0 - i / 40 for i in range(10)]
    assert not any(follow(looks(1, 19), Text(lambda profile: 1.0, documents=19), falls))
    assert any(follow(looks(1, 20), Text(lambda profile: 1.0, documents=20), falls))


def test_a_model_that_fails_on_validation_is_no_reference() -> None:
    level = dict.fromkeys(PROFILES, 1.0) | {PROFILES[0]: math.inf, PROFILES[2]: math.inf}
    found = looks(2)
    assert follow(found, Text(level.__getitem__), [1.0, 0.9, 0.8, 0.7, 0.6]) == [False] * 4 + [True]
    failed = {look.calibration for look in found.taken if look.validation is None}
    assert failed == {1.0, 0.8}


@pytest.mark.parametrize("stop", range(6))
def test_it_goes_on_from_its_state(stop: int) -> None:
    falls = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
    level = {profile: 1.0 - 0.02 * min(i, 2) for i, profile in enumerate(PROFILES)}
    whole, text = looks(3), Text(level.__getitem__)
    wanted = follow(whole, text, falls)
    first = looks(3)
    follow(first, text, falls[:stop])
    first.note([entry(PROFILES[40], falls[stop] + 0.01)])
    first.finish(stop * 100 * COST + 1, text)
    second = looks(3)
    second.note([entry(PROFILES[i], fitness) for i, fitness in enumerate(falls[:stop])])
    second.note([entry(PROFILES[40], falls[stop] + 0.01)])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.due(10**12) == first.due(10**12)
    assert follow(second, text, falls[stop:], stop) == wanted[stop:]
    assert second.state_dict() == whole.state_dict()


def test_the_last_look_is_taken_when_the_search_ends() -> None:
    found, text = looks(), Text(lambda profile: 1.0)
    assert found.finish(0, text) == []
    follow(found, text, [1.0])
    found.note([entry(PROFILES[1], 0.5)])
    before = found.state_dict()
    last = found.finish(10**9, text)
    assert [(look.tokens, look.calibration) for look in last[2:]] == [(10**9, 0.5), (10**9, 0.5)]
    assert found.state_dict() == before
    assert found.finish(100 * COST, text) == found.taken


def test_rows_compare_shares_of_uniform() -> None:
    taken = [
        Look(7, "small", "m", 0.5, 0.9),
        Look(7, "large", "n", 0.4, None),
        Look(9, "other", "o", 0.1, 0.1),
    ]
    uniform = {"small": Look(0, "small", "u", 1.0, 1.2), "large": Look(0, "large", "v", 0.0, 1.0)}
    small, large, other = look_rows(taken, uniform)
    assert small.record() == {
        "tokens": 7,
        "budget": "small",
        "calibration": 0.5,
        "validation": 0.9,
        "calibration_of_uniform": 0.5,
        "validation_of_uniform": 0.75,
        "gap": 0.25,
    }
    assert (large.calibration_of_uniform, large.gap) == (None, None)
    assert (other.validation, other.validation_of_uniform) == (0.1, None)
