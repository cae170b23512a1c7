"""Backward passes through the ends and through single blocks, against autograd in float64 and float32."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from paretopress.evaluators.fitness import FitnessConfig
from paretopress.evaluators.runner.gradients import GradientRunner
from tests.architectures import LENGTH, opened, random_tokens, save_model
from tests.evaluators.runner.test_runner import BATCH

DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
KL = FitnessConfig()


def make_runner(
    model: Path, dtype: torch.dtype = torch.float32, device: str = "cpu", micro_batch: int = BATCH
) -> GradientRunner:
    return GradientRunner(opened(model), device=device, dtype=dtype, micro_batch=micro_batch, length=LENGTH)


def random_states(seed: int = 0) -> Tensor:
    return torch.randn((BATCH, LENGTH, 32), generator=torch.Generator().manual_seed(seed))


def test_16_bits_pass_a_block_backwards_nearly_as_well(tmp_path: Path) -> None:
    model = save_model("llama", tmp_path / "llama")
    gradient = 1e-6 * random_states()
    found = []
    for runner in (make_runner(model), make_runner(model, torch.float16)):
        states = runner.embed(random_tokens(BATCH))
        with runner.block(0) as loaded:
            ((leaving, passed),) = runner.backward(loaded, states, [gradient])
        found.append([leaving, *(by_output for _, by_output in passed.values())])
    for fine, coarse in zip(*found, strict=True):
        assert float((coarse - fine).norm() / fine.norm()) < 0.02


@pytest.mark.parametrize("magnitude", [2.0**-50, 2.0**50])
def test_gradients_of_any_size_pass_a_block(magnitude: float, tmp_path: Path) -> None:
    """And each as it would pass alone."""
    runner = make_runner(save_model("llama", tmp_path / "llama"), torch.float16)
    states = runner.embed(random_tokens(BATCH))
    gradient = random_states()
    with runner.block(0) as loaded:
        ((plain, passed),) = runner.backward(loaded, states, [gradient])
        (scaled, also), (_, other) = runner.backward(loaded, states, [gradient * magnitude, random_states(1)])
    assert torch.equal(scaled / magnitude, plain)
    for path, (inputs, expected) in passed.items():
        assert torch.equal(also[path][1] / magnitude, expected)
        assert torch.equal(also[path][0], inputs)
        assert not torch.equal(other[path][1], expected)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_passes_as_such(wrong: float, tmp_path: Path) -> None:
    runner = make_runner(save_model("llama", tmp_path / "llama"))
    gradient = random_states()
    gradient[1, 3, 0] = wrong
    with runner.block(0) as loaded:
        ((leaving, _),) = runner.backward(loaded, runner.embed(random_tokens(BATCH)), [gradient])
    assert leaving[0].isfinite().all()
    assert not leaving[1].isfinite().all()


@DEVICES
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_heads_of_16_bits_are_passed_backwards(name: str, device: str, tmp_path: Path) -> None:
    model = save_model(name, tmp_path / name)
    states, dense = random_states().half(), random_states(1).half()
    found = [
        make_runner(model, dtype, device).end_gradients(
            states.to(device, dtype),
            dense.to(device, dtype),
            random_tokens(BATCH),
            KL,
            np.random.default_rng(0),
        )
        for dtype in (torch.float32, torch.float16)
    ]
    for part, (fine, coarse) in enumerate(zip(*found, strict=True)):
        assert fine.dtype == coarse.dtype == torch.float32
        errors = (coarse - fine).flatten(0, 1).norm(dim=-1) / fine.flatten(0, 1).norm(dim=-1).clamp(min=1e-3)
        # A position whose draw falls between two tokens may draw the other one.
        assert float((errors < 0.05).double().mean()) > (0.9 if part else 0.999)
        assert not fine[:, -1].any()
