"""Slopes around any profile, against autograd through the whole model in float64."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from paretopress.evaluators.fitness import FitnessConfig
from paretopress.evaluators.levels.building import CalibratedBuilderConfig, build_database, labels_to_build
from paretopress.evaluators.population.population import PopulationEvaluator
from paretopress.evaluators.runner import gradients
from paretopress.evaluators.runner.block_weights import BlockWeights, Residency
from paretopress.evaluators.runner.gradients import GradientRunner
from paretopress.evaluators.runner.runner import BlockRunner
from paretopress.evaluators.slopes.batches import Batch, batches_of
from paretopress.evaluators.slopes.slope_trial import (
    SlopeEvaluation,
    Slopes,
    SlopeSums,
    SlopeTrial,
    joined_slopes,
)
from paretopress.evaluators.slopes.slopes import level_slopes
from paretopress.evaluators.text.packing import Sequences
from paretopress.evaluators.trial import Evaluation, Fidelity, Trial
from paretopress.evaluators.trial_kinds import KINDS
from paretopress.spaces.configuration import SpaceConfig
from paretopress.spaces.construction import build_space
from paretopress.spaces.levels.packed import Packed
from paretopress.spaces.space import DENSE, Profile, Space
from paretopress.spaces.storage.database import LevelDatabase
from tests.architectures import LENGTH, core_first, random_tokens, save_model
from tests.evaluators.population.test_population import AMPLE, memory_plan
from tests.evaluators.runner.test_gradients import DEVICES, make_runner
from tests.evaluators.runner.test_runner import BATCH, run_plain
from tests.evaluators.runner.test_runner import make_runner as make_block_runner
from tests.evaluators.slopes.plain_slopes import fitness_values, plain_slopes, weight_of

SEQUENCES = 4
FROM_DISK = Residency(frozenset())
# Gemma's logits are capped after the head, GPT-2 stores weights the other way round, OPT projects its ends.
NAMES = ["llama", "gemma2", "gpt2", "opt"]
KL = FitnessConfig()
Floats = npt.NDArray[np.float64]
FITNESSES = [KL, FitnessConfig(name="topk-kl", k=16), FitnessConfig(name="cross-entropy")]


class Made(NamedTuple):
    """A model with levels of every layer."""

    model: Path
    runner: GradientRunner
    space: Space
    database: LevelDatabase

    def slopes(
        self,
        profile: Profile,
        batches: list[Batch] | None = None,
        fitness: FitnessConfig = KL,
        runner: GradientRunner | None = None,
    ) -> Slopes:
        return self.sums(profile, batches, fitness, runner).mean()

    def sums(
        self,
        profile: Profile,
        batches: list[Batch] | None = None,
        fitness: FitnessConfig = KL,
        runner: GradientRunner | None = None,
        together: int = 1 << 30,
    ) -> SlopeSums:
        batches = some_batches() if batches is None else batches
        runner = runner or self.runner
        weights = weights_from(runner, self.database)
        return level_slopes(runner, self.space, weights, profile, batches, fitness, together)


def weights_from(
    runner: GradientRunner, database: LevelDatabase, residency: Residency = FROM_DISK
) -> BlockWeights:
    return BlockWeights(runner.checkpoint, runner.structure, database, runner.dtype, runner.place, residency)


Make = Callable[..., Made]


def make_space(
    runner: GradientRunner, *levels: str, drop: str = "branches", ends: bool = False, tie: str = "none"
) -> Space:
    return build_space(
        runner.structure,
        SpaceConfig.model_validate({"levels": levels, "drop": drop, "units": {"ends": ends, "tie": tie}}),
        parameters={name: p.numel() for name, p in runner.checkpoint.skeleton().named_parameters()},
        dense_bits=32,
    )


def build(runner: GradientRunner, space: Space, folder: Path) -> LevelDatabase:
    labels = labels_to_build(space)
    database = LevelDatabase(folder, {"labels": labels})
    config = CalibratedBuilderConfig(quantizer="rtn", pruner="magnitude")
    build_database(database, labels, runner, random_tokens(SEQUENCES).numpy(), config)
    return database


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    @cache
    def model_of(name: str) -> Path:
        return save_model(name, tmp_path_factory.mktemp("models") / name)

    @cache
    def make(name: str, *, drop: str = "branches", tie: str = "none", ends: bool = False) -> Made:
        model = model_of(name)
        runner = make_runner(model)
        space = make_space(runner, "dense", "w3g16", "s50", drop=drop, tie=tie, ends=ends)
        return Made(model, runner, space, build(runner, space, tmp_path_factory.mktemp("levels")))

    return make


def some_batches(count: int = SEQUENCES, size: int = BATCH) -> list[Batch]:
    return batches_of(Fidelity(0, 0, count, LENGTH), random_tokens(count).numpy(), size)


def mixed_profile(space: Space, dropped: tuple[str, ...] = (), seed: int = 0) -> Profile:
    """Layers at any level, branches kept but for those named."""
    rng = np.random.default_rng(seed)
    return tuple(
        unit.index["drop" if unit.name in dropped else "keep"]
        if unit.droppable
        else int(rng.integers(len(unit.levels)))
        for unit in space.units
    )


def assert_close(found: Slopes, expected: Slopes, error: float = 2e-4) -> None:
    """Second orders by themselves; first ones, which cancel, by the largest."""
    largest = max(abs(change) for row in expected.first.values() for change in row.values())
    assert found.first.keys() == found.second.keys() == expected.first.keys()
    for unit in expected.first:
        assert found.first[unit] == pytest.approx(expected.first[unit], rel=error, abs=error * largest), unit
        assert found.second[unit] == pytest.approx(expected.second[unit], rel=error), unit


@pytest.mark.parametrize("fitness", FITNESSES, ids=lambda fitness: fitness.name)
@pytest.mark.parametrize("name", core_first(NAMES, ("llama", "gpt2")))
def test_slopes_are_those_of_the_definition(name: str, fitness: FitnessConfig, made: Make) -> None:
    """One branch dropped by itself, and both of a block, which then has no layers to pass through."""
    model = made(name)
    dropped = ("blocks.0.attention", "blocks.2.attention", "blocks.2.mlp")
    profile = mixed_profile(model.space, dropped)
    found = model.slopes(profile, fitness=fitness)
    batches = some_batches()
    assert_close(found, plain_slopes(model.model, model.space, model.database, profile, batches, fitness))
    for u, unit in enumerate(model.space.units):
        here = model.space.level(profile, u).label
        there = set(unit.index) - {here} if model.space.active(profile, u) else set()
        assert found.first[unit.name].keys() == found.second[unit.name].keys() == there
    assert max(abs(change) for row in found.first.values() for change in row.values()) > 0.01


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fitness", [KL, FITNESSES[2]], ids=lambda fitness: fitness.name)
@pytest.mark.parametrize("name", core_first([*NAMES, "mistral"], ("gemma2", "opt")))
def test_embedding_and_head_have_slopes(name: str, fitness: FitnessConfig, seed: int, made: Make) -> None:
    """Tied and not, scaled, projected, capped after the head; the dense model's ends stay the teacher's."""
    model = made(name, drop="none", ends=True)
    profile = mixed_profile(model.space, seed=seed)
    for base in (profile, DENSE):
        found = model.slopes(base, fitness=fitness)
        expected = plain_slopes(model.model, model.space, model.database, base, some_batches(), fitness)
        largest = max(abs(change) for row in expected.first.values() for change in row.values())
        for unit in model.space.units:
            if unit.block < 0:
                assert found.first[unit.name] == pytest.approx(
                    expected.first[unit.name], rel=2e-4, abs=2e-4 * largest + 1e-7
                )
                assert found.second[unit.name] == pytest.approx(expected.second[unit.name], rel=2e-4)
                assert min(found.second[unit.name].values()) > 0
    assert model.slopes(DENSE, fitness=fitness) == model.slopes(DENSE, fitness=fitness)


@pytest.mark.parametrize("name", core_first(NAMES, ("llama",)))
def test_around_the_dense_model_they_are_fisher_scores(name: str, made: Make) -> None:
    """Where the divergence is least, so that it has no slope."""
    model = made(name)
    expected = plain_slopes(model.model, model.space, model.database, DENSE, some_batches(), KL)
    for fitness in FITNESSES:
        found = model.slopes(DENSE, fitness=fitness)
        for unit, row in expected.second.items():
            assert found.second[unit] == pytest.approx(row, rel=2e-4), unit
        steepest = max(abs(change) for row in found.first.values() for change in row.values())
        assert steepest > 0.01 if fitness.name == "cross-entropy" else steepest < 1e-4
    dense = tuple(unit.index["keep" if unit.droppable else "dense"] for unit in model.space.units)
    assert model.slopes(dense) == model.slopes(DENSE)


@pytest.mark.parametrize("tie", ["none", "vllm"])
@pytest.mark.parametrize("dropped", [(), ("blocks.0", "blocks.2")])
def test_blocks_are_dropped_and_brought_back(dropped: tuple[str, ...], tie: str, made: Make) -> None:
    model = made("llama", drop="blocks", tie=tie)
    profile = mixed_profile(model.space, dropped, 3)
    found = model.slopes(profile)
    assert_close(found, plain_slopes(model.model, model.space, model.database, profile, some_batches(), KL))
    assert [set(found.first[f"blocks.{b}"]) for b in range(3)] == [
        {"keep"} if f"blocks.{b}" in dropped else {"drop"} for b in range(3)
    ]


def test_what_a_branch_brings_back_follows_from_the_profile(made: Make) -> None:
    """Units under a dropped branch decide nothing else."""
    model = made("llama")
    one, other = (mixed_profile(model.space, ("blocks.1.mlp",), seed) for seed in (0, 1))
    inside = [not model.space.active(one, u) for u in range(len(one))]
    assert sum(inside) == 3
    swapped = tuple(b if new else a for a, b, new in zip(one, other, inside, strict=True))
    before, after = (dict(model.slopes(profile).first) for profile in (one, swapped))
    assert before.pop("blocks.1.mlp") != after.pop("blocks.1.mlp")
    assert before == after


def test_a_step_towards_a_level_changes_the_divergence_by_its_slope(made: Make) -> None:
    """Central differences of the whole plain model in float64."""
    model = made("llama")
    profile = mixed_profile(model.space, ("blocks.0.mlp",))
    found = model.slopes(profile).first
    tokens, path = random_tokens(SEQUENCES), model.runner.structure.blocks_path
    assignment = model.space.assignment(profile)
    dropped = {0: ["mlp"]}

    def weight(layer: str, label: str) -> Tensor:
        return weight_of(model.model, model.database, layer, label)

    weights = {layer: weight(layer, label) for layer, label in assignment.items() if label != "drop"}
    teacher = run_plain(model.model, tokens, {}, {}, path, torch.float64).log_softmax(-1)

    def divergence(changed: dict[str, Tensor]) -> float:
        student = run_plain(model.model, tokens, weights | changed, dropped, path, torch.float64)
        return float(fitness_values(KL, teacher[:, :-1], student[:, :-1].log_softmax(-1), tokens).mean())

    for u, unit in enumerate(model.space.units):
        if unit.block != 1 or unit.droppable:
            continue
        here = weight(unit.name, model.space.level(profile, u).label)
        for label, slope in found[unit.name].items():
            step = 0.01 * (weight(unit.name, label) - here)
            change = divergence({unit.name: here + step}) - divergence({unit.name: here - step})
            assert slope == pytest.approx(change / 0.02, rel=0.01, abs=1e-5)


def test_small_changes_of_the_last_layer_diverge_as_scored(tmp_path: Path) -> None:
    """There, positions do not act together, so the mean over draws is the divergence to second order."""
    model = save_model("llama", tmp_path / "llama")
    runner = make_runner(model)
    space = make_space(runner, "dense", "s0", drop="none")
    generator = torch.Generator().manual_seed(0)
    last = runner.structure.blocks[-1].linears[-1]
    changed: dict[str, Tensor] = {}
    for linear in runner.structure.linears:
        weight = runner.checkpoint.tensor(f"{linear.path}.weight")
        noise = torch.randn(weight.shape, generator=generator)
        changed[linear.path] = (weight + 0.01 * noise).half().float()
    database = database_of(changed, tmp_path / "levels")
    tokens = random_tokens(SEQUENCES)
    scores = []
    for seed in range(15):
        batches = [Batch(part, BATCH, (seed, i)) for i, part in enumerate(torch.split(tokens, BATCH))]
        found = level_slopes(runner, space, weights_from(runner, database), DENSE, batches, KL).mean()
        scores.append(found.second[last.path]["s0"])
    dense, other = (
        run_plain(model, tokens, weights, {}, runner.structure.blocks_path, torch.float64).log_softmax(-1)
        for weights in ({}, {last.path: changed[last.path]})
    )
    divergence = (dense.exp() * (dense - other)).sum(-1)[:, :-1].mean()
    assert sum(scores) / len(scores) == pytest.approx(float(divergence), rel=0.15)


def database_of(weights: dict[str, Tensor], folder: Path) -> LevelDatabase:
    """These weights, in 16 bits, as the level `s0` of their layers."""
    labels = {path: ["s0"] for path in weights}
    database = LevelDatabase(folder, {"labels": labels})
    levels = {path: {"s0": stored(weight)} for path, weight in weights.items()}
    database.write("block-000", levels, {path: {"s0": 0.0} for path in levels})
    return database


def stored(weight_OI: Tensor) -> Packed:
    """All weights, each in 16 bits."""
    mask = torch.full((weight_OI.numel() // 8,), 255, dtype=torch.uint8)
    values = weight_OI.flatten().half()
    return Packed("s0", (weight_OI.shape[0], weight_OI.shape[1]), {"mask": mask, "values": values})


def test_batches_hold_a_fidelitys_sequences() -> None:
    tokens = random_tokens(9).numpy().astype(np.int32)
    fidelity = Fidelity(7, 1, 6, LENGTH // 2)
    rows = fidelity.rows(9)
    begun, full, part = batches_of(fidelity, tokens, 2)
    assert (begun.count, full.count, part.count) == (1, 2, 2)
    assert (begun.seed, full.seed, part.seed) == ((7, 1), (7, 2), (7, 4))
    one, two = batches_of(fidelity, tokens, 4)
    assert (one.count, two.count) == (3, 2)
    expected = torch.from_numpy(tokens[:, : LENGTH // 2]).long()
    assert torch.equal(begun.tokens_BT, expected[[rows[0], rows[0]]])
    assert torch.equal(full.tokens_BT, expected[rows[1:3]])
    assert torch.equal(two.tokens_BT, expected[[*rows[3:], *rows[3:]]])


@given(st.integers(0, 3), st.integers(0, 20), st.integers(1, 20), st.integers(1, 6), st.data())
def test_parts_that_end_at_multiples_have_the_batches_of_the_whole(
    seed: int, start: int, count: int, size: int, data: st.DataObject
) -> None:
    tokens = np.arange(40 * 3, dtype=np.int32).reshape(40, 3)
    whole = Fidelity(seed, start, start + count, 3)
    multiples = [place for place in range(start + 1, whole.stop) if place % size == 0]
    cuts = [c for c in multiples if data.draw(st.booleans())]
    parts = [replace(whole, start=a, stop=b) for a, b in pairwise([start, *cuts, whole.stop])]
    found = [batch for part in parts for batch in batches_of(part, tokens, size)]
    expected = batches_of(whole, tokens, size)
    assert [(b.count, b.seed) for b in found] == [(b.count, b.seed) for b in expected]
    assert all(torch.equal(a.tokens_BT, b.tokens_BT) for a, b in zip(found, expected, strict=True))
    assert sum(batch.count for batch in found) == count


def test_a_partly_filled_batch_counts_its_own_sequences(made: Make) -> None:
    model = made("llama")
    runner = make_runner(model.model, micro_batch=4)
    profile = mixed_profile(model.space, ("blocks.1.attention",))
    tokens = random_tokens(6).numpy()

    def slopes(start: int, stop: int) -> Slopes:
        return model.slopes(profile, batches_of(Fidelity(0, start, stop, LENGTH), tokens, 4), runner=runner)

    whole, first, last = slopes(0, 6), slopes(0, 4), slopes(4, 6)
    for parts in ((whole.first, first.first, last.first), (whole.second, first.second, last.second)):
        for unit, row in parts[0].items():
            for label, slope in row.items():
                both = 4 * parts[1][unit][label] + 2 * parts[2][unit][label]
                assert slope == pytest.approx(both / 6, rel=1e-12, abs=1e-12)
    (batch,) = batches_of(Fidelity(0, 4, 6, LENGTH), tokens, 4)
    filled = torch.cat([batch.tokens_BT[:2], random_tokens(2, seed=1)])
    assert model.slopes(profile, [Batch(filled, 2, batch.seed)], runner=runner) == last
    pairs = batches_of(Fidelity(0, 0, 6, LENGTH), tokens, 2)
    assert_close(whole, Slopes(model.slopes(profile, pairs).first, whole.second))


def mean_of(evaluation: Evaluation) -> Slopes | None:
    """What a search is told."""
    if isinstance(evaluation, SlopeEvaluation) and evaluation.slopes is not None:
        return evaluation.slopes.mean()
    return None


def make_evaluator(model: Made, runner: BlockRunner | None = None) -> PopulationEvaluator:
    runner = runner or make_runner(model.model)
    tokens = random_tokens(7).numpy().astype(np.int32)
    data = {"calibration": Sequences("calibration", tokens, np.arange(7, dtype=np.int32))}
    return PopulationEvaluator(
        model.space, model.database, runner, data, KL, memory=memory_plan(runner, AMPLE, True), teacher=AMPLE
    )


def test_an_evaluator_answers_slopes_and_values_in_any_company(made: Make) -> None:
    model = made("gpt2")
    evaluator = make_evaluator(model)
    profiles = [mixed_profile(model.space, seed=seed) for seed in range(3)]
    asked = [
        kind(2 * n + place, profile, Fidelity(0, n, 7, LENGTH))
        for n, profile in enumerate(profiles)
        for place, kind in enumerate(KINDS)
    ]
    together = {e.trial: e for e in evaluator.evaluate(asked)}
    assert together.keys() == set(asked)
    again = make_evaluator(model)
    for trial in reversed(asked):
        (alone,) = again.evaluate([trial])
        assert alone.values == together[trial].values
        assert mean_of(alone) == mean_of(together[trial])
        assert alone.error is None
        assert len(alone.values) == (0 if isinstance(trial, SlopeTrial) else trial.fidelity.sequences)
        assert (mean_of(alone) is not None) == isinstance(trial, SlopeTrial)
        assert alone.seconds > 0
    (first,) = evaluator.evaluate(asked[:1])
    assert first.values == together[asked[0]].values


def test_slopes_predict_what_the_evaluator_measures(tmp_path: Path) -> None:
    """Where changes are small: of 8 bits in groups of 16 and of 8 around a model of which a third has 3."""
    runner = make_runner(save_model("llama", tmp_path / "llama"))
    space = make_space(runner, "w3g16", "w8g16", "w8g8", drop="none")
    database = build(runner, space, tmp_path / "levels")
    evaluator = make_evaluator(Made(tmp_path / "llama", runner, space, database))
    base = tuple(int(u % 3 > 0) for u in range(len(space.units)))
    moved = {u: (*base[:u], 2, *base[u + 1 :]) for u, level in enumerate(base) if level}
    fidelity = Fidelity(0, 0, 7, LENGTH)
    (around,) = evaluator.evaluate([SlopeTrial(0, base, fidelity)])
    values = evaluator.evaluate([Trial(u, p, fidelity) for u, p in {0: base, **moved}.items()])
    fitness = {evaluation.trial.profile: evaluation.fitness for evaluation in values}
    measured = [fitness[profile] - fitness[base] for profile in moved.values()]
    slopes = mean_of(around)
    assert slopes is not None
    first = slopes.first
    predicted = [first[space.units[u].name]["w8g8"] for u in moved]
    assert len(measured) == 14
    assert min(measured) < 0 < max(measured)
    assert np.corrcoef(measured, predicted)[0, 1] > 0.95


@pytest.mark.parametrize("overflowing", [False, True])
def test_slopes_that_are_not_finite_are_an_error(overflowing: bool, tmp_path: Path) -> None:
    """Weights that overflow 16 bits, at the level moved to or already at the one moved from."""
    model = save_model("llama", tmp_path / "llama")
    runner = make_runner(model, torch.float16)
    space = make_space(runner, "dense", "s0", drop="none")
    wide = {
        linear.path: torch.full((linear.out_features, linear.in_features), 6e4)
        for linear in runner.structure.linears
    }
    evaluator = make_evaluator(Made(model, runner, space, database_of(wide, tmp_path / "levels")), runner)
    profile = tuple(unit.index["s0" if overflowing else "dense"] for unit in space.units)
    trials = [kind(n, profile, Fidelity(0, 0, 3, LENGTH)) for n, kind in enumerate((SlopeTrial, Trial))]
    found, value = evaluator.evaluate(trials)
    assert found.error == "a slope is not finite"
    assert (found.values, found.fitness) == ((), math.inf)
    assert mean_of(found) is None
    assert (value.error is not None) == overflowing


def test_what_slopes_cannot_be_of_is_refused(made: Make) -> None:
    model = made("llama")
    profile = mixed_profile(model.space)
    evaluator = make_evaluator(model)
    with pytest.raises(ValueError, match="calibration has 7 sequences, not 4..8; give more data"):
        list(evaluator.evaluate([SlopeTrial(0, profile, Fidelity(0, 4, 8, LENGTH))]))
    with pytest.raises(ValueError, match=r"fidelity length 25 is not within 2\.\.24"):
        list(evaluator.evaluate([SlopeTrial(0, profile, Fidelity(0, 0, 4, 25))]))
    forward = make_evaluator(model, make_block_runner(model.model))
    with pytest.raises(TypeError, match="slopes need a GradientRunner; make the evaluator with one"):
        list(forward.evaluate([SlopeTrial(0, profile, Fidelity(0, 0, 4, LENGTH))]))


@DEVICES
@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_come_again(name: str, dtype: torch.dtype, ends: bool, device: str, made: Make) -> None:
    """Of one runner twice, and of another one."""
    model = made(name, ends=ends)
    profile = mixed_profile(model.space, ("blocks.1.attention",))
    runner, other = (make_runner(model.model, dtype, device) for _ in range(2))
    first, *again = (model.slopes(profile, runner=each) for each in (runner, runner, other))
    assert again == [first, first]
    assert math.isfinite(math.fsum(np.concatenate(flat(first))))


@DEVICES
def test_where_matrices_stay_changes_no_bit(device: str, made: Make) -> None:
    model = made("llama")
    runner = make_runner(model.model, device=device)
    everywhere = frozenset(range(len(runner.structure.blocks)))
    for profile in (DENSE, mixed_profile(model.space, ("blocks.1.attention",))):
        expected = model.slopes(profile, runner=runner)
        for residency in (Residency(everywhere), Residency(frozenset({0}), frozenset({1}))):
            weights = weights_from(runner, model.database, residency)
            for _ in range(2):
                found = level_slopes(runner, model.space, weights, profile, some_batches(), KL)
                assert found.mean() == expected


def test_batches_apart_give_the_same_bits_as_together(made: Make) -> None:
    """Each micro-batch by itself too, whichever the others are."""
    model = made("llama")
    profile = mixed_profile(model.space, ("blocks.1.attention",))
    batches = some_batches(3 * BATCH)
    assert len(batches) == 3
    whole = model.sums(profile, batches)
    for together in (1, 2, 3):
        assert np.array_equal(model.sums(profile, batches, together=together).sums_FM2, whole.sums_FM2)
    for m, batch in enumerate(batches):
        alone = model.sums(profile, [batch])
        assert alone.levels == whole.levels
        assert np.array_equal(alone.sums_FM2[:, 0], whole.sums_FM2[:, m])
    assert np.array_equal(model.sums(profile, batches[::-1]).sums_FM2, whole.sums_FM2[:, ::-1])


def test_an_evaluators_parts_are_the_whole(made: Make) -> None:
    """However a request is divided, at the ends of micro-batches that are not full too."""
    model = made("llama")
    profile = mixed_profile(model.space, ("blocks.1.attention",))
    whole = SlopeTrial(0, profile, Fidelity(5, 1, 7, LENGTH))
    evaluator, other = make_evaluator(model), make_evaluator(model)
    (answer,) = evaluator.evaluate([whole])
    for cuts in ([4], [2, 6], [2, 4, 6]):
        edges = pairwise([1, *cuts, 7])
        asked = [replace(whole, fidelity=replace(whole.fidelity, start=a, stop=b)) for a, b in edges]
        parts = [
            part for e, trials in ((other, asked[:1]), (evaluator, asked[1:])) for part in e.evaluate(trials)
        ]
        joined = joined_slopes(whole, parts[::-1])
        assert joined.trial == whole
        assert joined.seconds == math.fsum(part.seconds for part in parts)
        assert mean_of(joined) == mean_of(answer)


@pytest.mark.gpu
@pytest.mark.parametrize("fitness", FITNESSES, ids=lambda fitness: fitness.name)
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_finds_the_same_slopes(name: str, ends: bool, fitness: FitnessConfig, made: Make) -> None:
    model = made(name, ends=ends)
    profile = mixed_profile(model.space, ("blocks.0.attention", "blocks.2.attention", "blocks.2.mlp"))
    found = model.slopes(profile, fitness=fitness, runner=make_runner(model.model, device="cuda"))
    assert_close(found, model.slopes(profile, fitness=fitness), 1e-2)


@DEVICES
@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("around", ["dense", "mixed"])
def test_16_bits_find_much_the_same_as_32(
    around: str, name: str, device: str, made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the same drawn tokens."""
    # Probabilities of 16 bits are other ones, so that here and there another token would be drawn; a single rare
    # one moves all second orders together, which says nothing about arithmetic.
    drawn: list[Tensor] = []
    draw: Callable[[Tensor, np.random.Generator], Tensor] = gradients.__dict__["_draw"]

    def draw_first(probs_PV: Tensor, rng: np.random.Generator) -> Tensor:
        drawn.append(draw(probs_PV, rng))
        return drawn[-1]

    def draw_again(probs_PV: Tensor, rng: np.random.Generator) -> Tensor:
        return drawn.pop(0).to(probs_PV.device)

    model = made(name)
    profile = mixed_profile(model.space, ("blocks.1.mlp",)) if around == "mixed" else DENSE
    coarse = make_runner(model.model, torch.bfloat16, device)
    found = []
    for runner, tokens in ((model.runner, draw_first), (coarse, draw_again)):
        monkeypatch.setattr(gradients, "_draw", tokens)
        found.append(flat(model.slopes(profile, runner=runner)))
    assert not drawn
    (first, second), (coarse_first, coarse_second) = found
    shift = np.log(coarse_second) - np.log(second)
    assert np.corrcoef(np.log(second), np.log(coarse_second))[0, 1] > 0.99
    assert abs(float(np.mean(shift))) < 0.1
    if around == "mixed":
        assert np.corrcoef(first, coarse_first)[0, 1] > 0.99


def flat(slopes: Slopes) -> tuple[Floats, Floats]:
    """All first and all second ones, in order."""
    first, second = (
        np.array([change for row in part.values() for change in row.values()])
        for part in (slopes.first, slopes.second)
    )
    return first, second
