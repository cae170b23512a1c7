"""The population evaluator against each profile alone in the plain model, on every architecture."""

import gc
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from paretopress.evaluators.fitness import FitnessConfig
from paretopress.evaluators.levels.building import CalibratedBuilderConfig, build_database, labels_to_build
from paretopress.evaluators.population.population import PopulationEvaluator
from paretopress.evaluators.population.sanity import check_dense
from paretopress.evaluators.runner.block_weights import Residency
from paretopress.evaluators.runner.memory import MemoryPlan
from paretopress.evaluators.runner.runner import BlockRunner
from paretopress.evaluators.text.packing import Sequences
from paretopress.evaluators.trial import Fidelity, Trial
from paretopress.spaces.configuration import SpaceConfig, UnitsConfig
from paretopress.spaces.construction import build_space
from paretopress.spaces.space import DENSE, Profile
from paretopress.spaces.storage.database import LevelDatabase
from tests.architectures import ARCHITECTURES, LENGTH, VOCABULARY, core_first, random_tokens, save_model
from tests.evaluators.runner.test_runner import make_runner, run_plain

SEQUENCES = 7
AMPLE = 10**9

Make = Callable[[str], PopulationEvaluator]


def sequences(name: str = "calibration", seed: int = 0) -> Sequences:
    tokens = random_tokens(SEQUENCES, seed=seed).numpy().astype(np.int32)
    return Sequences(name, tokens, np.arange(SEQUENCES, dtype=np.int32))


def make_evaluator(
    model: Path,
    folder: Path,
    *,
    states: int = AMPLE,
    resident: bool = True,
    micro_batch: int = 2,
    fitness: str = "kl",
    ends: bool = False,
) -> PopulationEvaluator:
    runner = make_runner(model, micro_batch=micro_batch)
    space = build_space(
        runner.structure,
        SpaceConfig(levels=("w2g16", "w4g16", "s50"), drop="branches", units=UnitsConfig(ends=ends)),
        parameters={name: p.numel() for name, p in runner.checkpoint.skeleton().named_parameters()},
        dense_bits=32,
    )
    labels = labels_to_build(space)
    database = LevelDatabase(folder, {"model": runner.checkpoint.fingerprint, "labels": labels})
    calibration = sequences()
    build_database(database, labels, runner, calibration.tokens[:6], CalibratedBuilderConfig())
    return PopulationEvaluator(
        space,
        database,
        runner,
        {"calibration": calibration, "heldout": sequences("heldout", 1)},
        FitnessConfig.model_validate({"name": fitness}),
        memory=memory_plan(runner, states, resident),
        teacher=AMPLE,
        chunk=10,
    )


def memory_plan(runner: BlockRunner, states: int, resident: bool) -> MemoryPlan:
    blocks = len(runner.structure.blocks)
    return MemoryPlan(states, states, Residency(frozenset(range(blocks) if resident else ())), blocks)


@pytest.fixture(scope="module")
def evaluators(tmp_path_factory: pytest.TempPathFactory) -> Make:
    @cache
    def make(name: str) -> PopulationEvaluator:
        model = save_model(name, tmp_path_factory.mktemp("models") / name)
        return make_evaluator(model, tmp_path_factory.mktemp("levels"))

    return make


def some_profiles(evaluator: PopulationEvaluator, count: int) -> list[Profile]:
    """Profiles that share prefixes: each differs from the one before in a few units."""
    rng = np.random.default_rng(0)
    units = evaluator.space.units
    profile = [unit.index.get("keep", len(unit.levels) - 1) for unit in units]
    found = []
    for _ in range(count):
        found.append(tuple(profile))
        for _ in range(3):
            unit = int(rng.integers(len(units)))
            profile[unit] = int(rng.integers(len(units[unit].levels)))
    return found


def plain_values(
    evaluator: PopulationEvaluator, model: Path, profile: Profile, data: str, length: int = LENGTH
) -> tuple[list[float], list[float]]:
    """KL and cross-entropy of every sequence, from the plain model in float64."""
    runner = evaluator.runner
    assignment = evaluator.space.assignment(profile)
    weights = {
        layer: evaluator.weights.database.load(layer, label, torch.device("cpu")).dense().float()
        for layer, label in assignment.items()
        if label != "drop"
    }
    dropped = {
        block.index: [b.kind for b in block.branches if assignment.get(b.linears[0].path) == "drop"]
        for block in runner.structure.blocks
    }
    tokens = torch.from_numpy(evaluator.data[data].tokens[:, :length].astype(np.int64))
    teacher, student = (
        run_plain(model, tokens, w, d, runner.structure.blocks_path).double().log_softmax(-1)
        for w, d in (({}, {}), (weights, dropped))
    )
    kl = (teacher.exp() * (teacher - student)).sum(-1)[:, :-1].mean(-1)
    loss = -student[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1).mean(-1)
    return kl.tolist(), loss.tolist()


@pytest.mark.parametrize("name", core_first(ARCHITECTURES))
def test_a_population_is_every_profile_alone(name: str, evaluators: Make) -> None:
    evaluator = evaluators(name)
    model = evaluator.runner.checkpoint.path
    profiles = some_profiles(evaluator, 6)
    fidelity = Fidelity(0, 0, SEQUENCES, LENGTH)
    found = list(evaluator.evaluate([Trial(i, p, fidelity) for i, p in enumerate(profiles)]))
    assert sorted(e.trial.number for e in found) == list(range(6))
    for evaluation in found:
        kl, loss = plain_values(evaluator, model, evaluation.trial.profile, "calibration")
        np.testing.assert_allclose(evaluation.values, kl, rtol=2e-4, atol=2e-6)
        np.testing.assert_allclose(evaluation.cross_entropy, loss, rtol=1e-5)
    assert max(e.fitness for e in found) > 0.1


def test_sequences_can_be_cut_short(evaluators: Make) -> None:
    evaluator = evaluators("gemma2")
    profile = some_profiles(evaluator, 3)[-1]
    for length in (LENGTH // 2, 2, LENGTH):
        (found,) = evaluator.evaluate([Trial(0, profile, Fidelity(0, 0, SEQUENCES, length))])
        kl, loss = plain_values(evaluator, evaluator.runner.checkpoint.path, profile, "calibration", length)
        np.testing.assert_allclose(found.values, kl, rtol=2e-4, atol=2e-6)
        np.testing.assert_allclose(found.cross_entropy, loss, rtol=1e-5)


def test_values_do_not_depend_on_population_tile_or_order(evaluators: Make, tmp_path: Path) -> None:
    evaluator = evaluators("llama")
    profiles = some_profiles(evaluator, 9)
    whole = Fidelity(0, 0, SEQUENCES, LENGTH)
    together = {
        e.trial.profile: e.values
        for e in evaluator.evaluate([Trial(i, p, whole) for i, p in enumerate(profiles)])
    }
    tiny = make_evaluator(evaluator.runner.checkpoint.path, tmp_path, states=1)
    for profile in reversed(profiles):
        (alone,) = tiny.evaluate([Trial(0, profile, whole)])
        assert alone.values == together[profile]
        (part,) = evaluator.evaluate([Trial(0, profile, Fidelity(0, 3, 6, LENGTH))])
        assert part.values == together[profile][3:6]
    tiled = {
        e.trial.profile: e.values for e in tiny.evaluate([Trial(i, p, whole) for i, p in enumerate(profiles)])
    }
    assert tiled == together


def test_a_streamed_model_has_the_same_values(evaluators: Make, tmp_path: Path) -> None:
    evaluator = evaluators("gpt2")
    streamed = make_evaluator(evaluator.runner.checkpoint.path, tmp_path, resident=False)
    trial = Trial(0, some_profiles(evaluator, 4)[-1], Fidelity(0, 0, 4, LENGTH))
    (first,), (second,) = evaluator.evaluate([trial]), streamed.evaluate([trial])
    assert first.values == second.values


def test_what_an_evaluator_holds_goes_with_it(evaluators: Make, tmp_path: Path) -> None:
    evaluator = make_evaluator(evaluators("llama").runner.checkpoint.path, tmp_path)
    evaluator.measure([{}], Fidelity(0, 0, 2, LENGTH))
    held = weakref.ref(evaluator.weights)
    gc.disable()
    try:
        del evaluator
        assert held() is None
    finally:
        gc.enable()


def test_equal_models_are_evaluated_once_and_answered_all(evaluators: Make) -> None:
    evaluator = evaluators("llama")
    space = evaluator.space
    labels = {unit.name: "drop" if unit.droppable else "w2g16" for unit in space.units}
    other = labels | {unit.name: "s50" for unit in space.units if not unit.droppable}
    twins = [space.parse(labels), space.parse(other)]
    assert twins[0] != twins[1]
    fidelity = Fidelity(0, 0, 2, LENGTH)
    first, second = evaluator.evaluate([Trial(i, p, fidelity) for i, p in enumerate(twins)])
    assert (first.trial.number, second.trial.number) == (0, 1)
    assert first.values == second.values


def test_the_dense_model_has_no_divergence_and_its_own_perplexity(evaluators: Make) -> None:
    evaluator = evaluators("qwen2")
    (dense,) = evaluator.evaluate([Trial(0, DENSE, Fidelity(0, 0, SEQUENCES, LENGTH, "heldout"))])
    assert dense.values == (0.0,) * SEQUENCES
    _, loss = plain_values(evaluator, evaluator.runner.checkpoint.path, DENSE, "heldout")
    np.testing.assert_allclose(dense.cross_entropy, loss, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_embeddings_and_head_are_units(name: str, tmp_path: Path) -> None:
    model = save_model(name, tmp_path / name)
    evaluator = make_evaluator(model, tmp_path / "levels", ends=True)
    units = [i for i, unit in enumerate(evaluator.space.units) if unit.block < 0]
    assert len(units) == (1 if evaluator.runner.structure.ends.tied else 2)
    profiles = [
        tuple(len(u.levels) - 1 if i in units and k else 1 for i, u in enumerate(evaluator.space.units))
        for k in (0, 1)
    ]
    fidelity = Fidelity(0, 0, SEQUENCES, LENGTH)
    for evaluation in evaluator.evaluate([Trial(i, p, fidelity) for i, p in enumerate(profiles)]):
        kl, _ = plain_values(evaluator, model, evaluation.trial.profile, "calibration")
        np.testing.assert_allclose(evaluation.values, kl, rtol=2e-4, atol=2e-6)


def test_cross_entropy_needs_no_teacher(evaluators: Make, tmp_path: Path) -> None:
    model = evaluators("llama").runner.checkpoint.path
    evaluator = make_evaluator(model, tmp_path, fitness="cross-entropy")
    (found,) = evaluator.evaluate([Trial(0, some_profiles(evaluator, 2)[1], Fidelity(0, 0, 3, LENGTH))])
    assert found.values == found.cross_entropy


def test_fresh_orders_draw_the_rows_they_name(evaluators: Make) -> None:
    evaluator = evaluators("llama")
    profile = some_profiles(evaluator, 3)[-1]
    fresh = Fidelity(7, 0, 4, LENGTH)
    rows = fresh.rows(SEQUENCES)
    (drawn,) = evaluator.evaluate([Trial(0, profile, fresh)])
    (whole,) = evaluator.evaluate([Trial(0, profile, Fidelity(0, 0, SEQUENCES, LENGTH))])
    np.testing.assert_allclose(drawn.values, np.array(whole.values)[rows], rtol=1e-5)


def test_asking_for_what_is_not_there_is_refused(evaluators: Make) -> None:
    evaluator = evaluators("llama")
    profile = some_profiles(evaluator, 1)[0]
    with pytest.raises(ValueError, match="calibration has 7 sequences, not 0..8; give more data"):
        list(evaluator.evaluate([Trial(0, profile, Fidelity(0, 0, 8, LENGTH))]))
    with pytest.raises(ValueError, match=r"fidelity length 25 is not within 2\.\.24"):
        list(evaluator.evaluate([Trial(0, profile, Fidelity(0, 0, 4, 25))]))


def test_the_sanity_gate_refuses_what_cannot_work(evaluators: Make) -> None:
    evaluator = evaluators("llama")
    with pytest.raises(ValueError, match="give the model its own tokenizer"):
        check_dense(evaluator, 50)
    with pytest.raises(ValueError, match=f"worse than guessing among {VOCABULARY} tokens"):
        check_dense(evaluator, VOCABULARY)
