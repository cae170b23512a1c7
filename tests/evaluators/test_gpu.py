"""What only a GPU shows: its kernels, replays, compilation, streams and several devices."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from paretopress.evaluators.fitness import FitnessConfig
from paretopress.evaluators.levels.building import CalibratedBuilderConfig, build_database, labels_to_build
from paretopress.evaluators.population.population import PopulationEvaluator
from paretopress.evaluators.runner.block_weights import Residency
from paretopress.evaluators.runner.launch import Launcher, Pace
from paretopress.evaluators.runner.memory import MemoryPlan
from paretopress.evaluators.runner.runner import BlockRunner
from paretopress.evaluators.text.packing import Sequences
from paretopress.evaluators.trial import Fidelity
from paretopress.spaces.configuration import SpaceConfig
from paretopress.spaces.construction import build_space
from paretopress.spaces.levels.cuda_graphs import Replays
from paretopress.spaces.storage.database import LevelDatabase
from tests.architectures import ARCHITECTURES, LENGTH, opened, random_tokens, save_model
from tests.evaluators.runner.test_runner import BATCH, divergence, rounded, run_blocks, run_plain
from tests.spaces.model.test_checkpoint import QUICKSTART

pytestmark = pytest.mark.gpu

PACES = {
    "plain": Pace(),
    "replayed": Pace(replayed=True),
    "side by side": Pace(rows=1 << 20),
    "compiled": Pace(compiled=True, rows=1 << 20),
    "compiled and replayed": Pace(compiled=True, replayed=True, rows=1 << 20),
}


def make_runner(
    model: Path,
    pace: Pace,
    *,
    devices: Sequence[str] = ("cuda:0",),
    dtype: torch.dtype = torch.float32,
    micro_batch: int = BATCH,
    length: int = LENGTH,
) -> BlockRunner:
    return BlockRunner(
        opened(model),
        device=[torch.device(name) for name in devices],
        dtype=dtype,
        micro_batch=micro_batch,
        length=length,
        pace=pace,
    )


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_is_that_of_transformers(name: str, pace: str, tmp_path: Path) -> None:
    model = save_model(name, tmp_path / name)
    runner = make_runner(model, PACES[pace])
    tokens_BT, weights = random_tokens(BATCH), rounded(runner)
    for dropped in ({}, {1: ["attention"], 2: ["mlp"]}):
        expected_BTV = run_plain(model, tokens_BT, weights, dropped, runner.structure.blocks_path)
        for _ in range(3):  # run, recorded, replayed
            found_BTV = run_blocks(runner, tokens_BT, weights, dropped)
        torch.testing.assert_close(found_BTV.cpu(), expected_BTV, rtol=2e-4, atol=2e-4)
        assert divergence(expected_BTV, found_BTV.cpu()) < 1e-8


def test_company_and_replays_change_no_bit() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(256, 256, device="cuda", dtype=torch.float16, generator=generator)
    batches = list(torch.randn(21, 2, 64, 256, device="cuda", dtype=torch.float16, generator=generator))

    def run(states: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(states @ weight) + states

    expected = [run(batch) for batch in batches]
    for launcher in (Launcher(run, 8), Launcher(run, 1, Replays()), Launcher(run, 8, Replays())):
        for _ in range(3):
            assert all(map(torch.equal, launcher(batches), expected))


def test_a_width_that_changes_bits_is_not_used() -> None:
    def run(states: torch.Tensor) -> torch.Tensor:
        return states * len(states)

    batches = list(torch.randn(9, 1, 4, device="cuda"))
    launcher = Launcher(run, 8)
    for _ in range(2):
        assert all(map(torch.equal, launcher(batches), batches))


def evaluator_of(
    folder: Path,
    pace: Pace,
    residency: Residency,
    states: int = 1 << 30,
    devices: Sequence[str] = ("cuda:0",),
) -> PopulationEvaluator:
    runner = make_runner(QUICKSTART, pace, devices=devices, dtype=torch.float16, length=128)
    space = build_space(
        runner.structure,
        SpaceConfig(levels=("w2g32", "w4g32a", "s50"), drop="branches"),
        parameters={name: p.numel() for name, p in runner.checkpoint.skeleton().named_parameters()},
        dense_bits=16,
    )
    labels = labels_to_build(space)
    database = LevelDatabase(folder, {"labels": labels})
    tokens = np.random.default_rng(0).integers(0, 4000, (13, 128), dtype=np.int32)
    build_database(database, labels, runner, tokens[:8], CalibratedBuilderConfig())
    return PopulationEvaluator(
        space,
        database,
        runner,
        {"calibration": Sequences("calibration", tokens, np.arange(13, dtype=np.int32))},
        FitnessConfig(),
        memory=MemoryPlan(states, states, residency, 8),
        teacher=1 << 30,
        chunk=100,
    )


EVERYWHERE = Residency(frozenset(range(8)))


@pytest.mark.parametrize("pace", PACES)
def test_values_depend_on_neither_company_nor_place(pace: str, tmp_path: Path) -> None:
    evaluator = evaluator_of(tmp_path, PACES[pace], EVERYWHERE)
    space = evaluator.space
    rng = np.random.default_rng(1)
    profiles = [tuple(int(rng.integers(len(unit.levels))) for unit in space.units) for _ in range(9)]
    assignments = [space.assignment(space.canonical(profile)) for profile in profiles]
    whole = Fidelity(0, 0, 13, 128)
    expected = evaluator.measure(assignments, whole)
    assert evaluator.measure(assignments[::-1], whole)[0] == expected[0][::-1]
    assert evaluator.measure(assignments[4:5], whole)[0] == expected[0][4:5]
    part = evaluator.measure(assignments, Fidelity(0, 3, 9, 128))[0]
    assert part == [row[3:9] for row in expected[0]]
    halves = frozenset(range(0, 8, 2)), frozenset(range(1, 8, 2))
    for residency in (
        Residency(frozenset()),
        Residency(*halves),
        Residency(frozenset(), frozenset(range(8))),
    ):
        for states in (1, 1 << 30):
            other = evaluator_of(tmp_path, PACES[pace], residency, states)
            assert other.measure(assignments, whole) == expected


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
@pytest.mark.parametrize("pace", PACES)
def test_blocks_spread_over_two_devices_give_the_same_values(pace: str, tmp_path: Path) -> None:
    spread = "cuda:0", "cuda:1"
    one = evaluator_of(tmp_path, PACES[pace], EVERYWHERE)
    two = evaluator_of(tmp_path, PACES[pace], EVERYWHERE, devices=spread)
    assert {two.runner.place(i).index for i in range(8)} == {0, 1}
    rng = np.random.default_rng(1)
    profiles = [tuple(int(rng.integers(len(unit.levels))) for unit in one.space.units) for _ in range(5)]
    assignments = [one.space.assignment(one.space.canonical(profile)) for profile in profiles]
    whole = Fidelity(0, 0, 13, 128)
    expected = one.measure(assignments, whole)
    for _ in range(3):
        assert two.measure(assignments, whole) == expected
