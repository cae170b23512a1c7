from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from paretopress.evaluators.trial import Fidelity
from paretopress.search.asking.calibration_sequences import CalibrationSequences
from paretopress.search.asking.turns import Turns
from paretopress.search.methods.evolution import EvolutionConfig, EvolutionSearcher, schedule
from paretopress.search.methods.mutation import Groups, Mutation
from paretopress.spaces.space import Limits, Profile, Space
from tests.contracts.searcher import SearcherContract, finish
from tests.toys import (
    CALIBRATION,
    LENGTH,
    SPACES,
    ToyEvaluator,
    bits_limits,
    bits_space,
    branch,
    drop_limits,
    drop_space,
    joint_limits,
    joint_space,
    ladder_limits,
    ladder_space,
    switches,
)

SMALL = EvolutionConfig(
    generations=4, offspring=8, survivors=(4, 2, 1), tokens=(LENGTH, 2 * LENGTH, 4 * LENGTH), initial=3
)


class TestEvolution(SearcherContract):
    def make(self, space: Space, limits: Limits, seed: int, start: Sequence[Profile] = ()) -> Turns:
        return EvolutionSearcher(SMALL, space, limits, CALIBRATION, seed, start)


class TestFresh(SearcherContract):
    def make(self, space: Space, limits: Limits, seed: int, start: Sequence[Profile] = ()) -> Turns:
        config = SMALL.model_copy(
            update={"fresh": True, "survivors": (1,), "tokens": (LENGTH,), "patience": 3}
        )
        return EvolutionSearcher(config, space, limits, CALIBRATION, seed, start)


def run(space: Space, limits: Limits, evaluator: ToyEvaluator, seed: int = 0, **settings: object) -> Profile:
    """The best profile of a search with one-sequence stages."""
    plain = {"generations": 25, "offspring": 16, "survivors": (4, 1), "tokens": (LENGTH, 2 * LENGTH)}
    searcher = EvolutionSearcher(
        EvolutionConfig.model_validate(plain | settings), space, limits, CALIBRATION, seed
    )
    finish(searcher, evaluator)
    assert searcher.best is not None
    return searcher.best


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ["drop", "joint"])
def test_finds_the_optimum(name: str, seed: int) -> None:
    make, make_limits = SPACES[name]
    space = make()
    limits = make_limits(space)
    evaluator = ToyEvaluator(space, seed=seed, interaction=0.3)
    best = run(space, limits, evaluator, seed, drop_balance=False)
    assert evaluator.true(best) == pytest.approx(evaluator.optimum(limits)[1], abs=1e-12)


def test_finds_the_optimum_of_bits_across_shapes() -> None:
    space = bits_space(blocks=2)
    limits = bits_limits(space)
    evaluator = ToyEvaluator(space, seed=1, interaction=0.3)
    best = run(space, limits, evaluator, groups="none")
    assert evaluator.true(best) == pytest.approx(evaluator.optimum(limits)[1], abs=1e-12)


def test_equal_counts_have_their_own_optimum() -> None:
    space = drop_space()
    limits = drop_limits(space)
    evaluator = ToyEvaluator(space, seed=4)
    best = run(space, limits, evaluator)
    balanced = [
        p for p in np.ndindex(*[2] * 8) if space.fits(p, limits) and p[0::2].count(0) == p[1::2].count(0) == 1
    ]
    assert best[0::2].count(0) == best[1::2].count(0)
    assert evaluator.true(best) <= min(evaluator.true(p) for p in balanced)


def test_stages_are_nested_and_generations_rotate() -> None:
    space = bits_space()
    searcher = EvolutionSearcher(SMALL, space, bits_limits(space), CALIBRATION, 0)
    trials = finish(searcher, ToyEvaluator(space, noise=0.1))
    generations = [t.fidelity for t in trials if t.fidelity.sequences in (1, 2, 4)]
    starts = list(dict.fromkeys(f.start for f in generations if f.sequences == 4))
    assert starts == [0, 4, 8, 12]
    assert {f.start for f in generations} == set(starts)


def test_windows_come_around_again() -> None:
    pool = CalibrationSequences(10, LENGTH, Fidelity(0, 0, 4, LENGTH))
    windows = [pool.window(4 * LENGTH, turn, 4 * LENGTH) for turn in range(3)]
    assert [(w.start, w.stop) for w in windows] == [(0, 4), (4, 8), (0, 4)]
    assert pool.window(100 * LENGTH, 5, 100 * LENGTH) == Fidelity(0, 0, 10, LENGTH)
    assert pool.prefix(LENGTH + 1).sequences == 2


def test_the_parent_joins_the_last_stage_only() -> None:
    space = bits_space()
    searcher = EvolutionSearcher(SMALL, space, bits_limits(space), CALIBRATION, 0)
    evaluator = ToyEvaluator(space, noise=0.1)
    checked = 0
    while asked := searcher.ask():
        parent = searcher.parent
        stage = [t for t in asked if t.fidelity.start == asked[0].fidelity.start]
        if parent is not None and searcher.generation < 4:
            at_stage = [t.profile for t in stage if t.fidelity == asked[0].fidelity]
            assert (parent in at_stage) == (asked[0].fidelity.sequences == 4)
            checked += 1
        searcher.tell(list(evaluator.evaluate(asked)))
    assert checked >= 12


def test_fresh_minibatches_are_never_used_twice() -> None:
    space = bits_space()
    config = SMALL.model_copy(update={"fresh": True})
    trials = finish(EvolutionSearcher(config, space, bits_limits(space), CALIBRATION, 0), ToyEvaluator(space))
    fresh = {t.fidelity for t in trials if t.fidelity.seed}
    assert len({f.seed for f in fresh}) == len(fresh) == 1 + 3 * 4


def test_patience_ends_early() -> None:
    space = bits_space()
    config = EvolutionConfig(offspring=8, survivors=(2, 1), tokens=(LENGTH, LENGTH), patience=2)
    searcher = EvolutionSearcher(config, space, bits_limits(space), CALIBRATION, 0)
    finish(searcher, ToyEvaluator(space, constant=True))
    assert searcher.generation == 2


def test_blanks_follow_the_paper() -> None:
    bits = schedule(EvolutionConfig(), bits_space(), bits_limits(bits_space()))
    assert (bits.generations, bits.offspring, bits.survivors) == (150, 128, (16, 4, 1))
    assert (bits.tokens, bits.groups, bits.initial) == ((2048, 16384, 131072), "size", 0)
    ladder = schedule(EvolutionConfig(), ladder_space(), ladder_limits(ladder_space()))
    assert (ladder.generations, ladder.offspring, ladder.survivors) == (400, 64, (8, 2, 1))
    assert (ladder.tokens, ladder.groups) == ((2048, 16384, 65536), "none")
    blocks = 32
    space = Space(tuple(branch(b, k, {"n": 1}) for b in range(blocks) for k in ("attention", "mlp")))
    drop = schedule(EvolutionConfig(), space, {"n": 48})
    assert (drop.generations, drop.offspring, drop.survivors) == (128, 32, (2, 1))
    assert (drop.tokens, drop.drop_balance, drop.initial) == ((2048, 32768), True, 64)
    mixed = schedule(EvolutionConfig(drop_balance=False), space, {"n": 48})
    k, n = 2 * 8, 2 * 32  # of all branches, since any mix may be dropped
    assert mixed.generations == int(k * (n - k) / 1.5)
    joint = schedule(EvolutionConfig(), joint_space(), joint_limits(joint_space()))
    assert (joint.generations, joint.groups, joint.drop_balance) == (150, "none", False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"survivors": (4, 1)}, "survivors and tokens belong together"),
        ({"survivors": (4, 1), "tokens": (1,)}, "2 survivors for 1 token counts"),
        ({"survivors": (4, 2), "tokens": (1, 2)}, "the last stage has 2 survivors"),
        ({"survivors": (2, 4, 1), "tokens": (1, 2, 3)}, "grow"),
        ({"survivors": (2, 1), "tokens": (2, 1)}, "shrink"),
        ({"survivor": (1,)}, "Extra inputs"),
    ],
)
def test_refuses_stages_that_do_not_fit(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvolutionConfig.model_validate(settings)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["bits", "ladder", "drop", "joint"]),
    st.sampled_from(["size", "name", "type", "none"]),
    st.booleans(),
    st.integers(0, 10_000),
)
def test_offspring_keep_the_budget_and_differ(name: str, groups: Groups, balanced: bool, seed: int) -> None:
    make, make_limits = SPACES[name]
    space = make()
    limits = make_limits(space)
    mutation = Mutation(space, limits, groups, balanced, 3)
    rng = np.random.default_rng(seed)
    (parent,) = mutation.random_states(1, rng)
    children = mutation.offspring(parent, 10, rng)
    keys = [space.canonical(child) for child in children]
    assert all(space.fits(child, limits) for child in children)
    assert len(set(keys)) == len(keys)
    assert space.canonical(parent) not in keys


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_switches_inside_equal_sizes_freeze_each_size(seed: int) -> None:
    space = bits_space()
    limits = bits_limits(space)
    parent = space.uniform(limits)
    mutation = Mutation(space, limits, "size", False, 1)
    for child in mutation.offspring(parent, 5, np.random.default_rng(seed)):
        assert space.cost(child, "bits") <= limits["bits"]
        raised = Counter(u.name[-1] for u, a, b in zip(space.units, parent, child, strict=True) if b > a)
        lowered = Counter(u.name[-1] for u, a, b in zip(space.units, parent, child, strict=True) if b < a)
        assert set(raised) == set(lowered)
        assert len(set(raised)) == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_one_switch_on_a_ladder_is_one_up_and_one_down(seed: int) -> None:
    space = ladder_space()
    limits = ladder_limits(space)
    parent = space.uniform(limits)
    for child in Mutation(space, limits, "none", False, 1).offspring(parent, 5, np.random.default_rng(seed)):
        assert switches(parent, child) == 2
        assert space.cost(child, "kept") == space.cost(parent, "kept")


def test_balanced_swaps_stay_within_a_type() -> None:
    space = drop_space()
    limits = drop_limits(space)
    mutation = Mutation(space, limits, "none", True, 3)
    rng = np.random.default_rng(0)
    for parent in mutation.random_states(10, rng):
        assert mutation.is_balanced(parent)
        assert all(mutation.is_balanced(child) for child in mutation.offspring(parent, 5, rng))


def test_drop_moves_reach_units_and_branches() -> None:
    space = joint_space()
    limits = joint_limits(space)
    mutation = Mutation(space, limits, "none", False, 1)
    children = mutation.offspring(space.cheapest(limits), 30, np.random.default_rng(0))
    dropped = {tuple(label == "drop" for label in space.labels(child)) for child in children}
    assert len(dropped) > 1


def test_mutation_strength_is_the_smaller_of_two_draws() -> None:
    space = ladder_space(blocks=20)
    limits = ladder_limits(space)
    parent = space.uniform(limits)
    children = Mutation(space, limits, "none", False, 3).offspring(parent, 900, np.random.default_rng(0))
    moves = Counter(-(-switches(parent, child) // 2) for child in children)
    assert moves[1] / len(children) == pytest.approx(5 / 9, abs=0.06)
    assert moves[3] / len(children) == pytest.approx(1 / 9, abs=0.05)


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="are empty"):
        replace(CALIBRATION, sequences=0)
    with pytest.raises(ValueError, match=r"the archive uses sequences 0..8, but there are 4 for calibration"):
        replace(CALIBRATION, sequences=4)
