"""Outlier ratios and influences, against hooks in the plain model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from paretopress.evaluators.levels.activations import influences, outlier_ratios
from tests.architectures import random_tokens, save_model
from tests.evaluators.runner.test_runner import BATCH, make_runner

TOKENS = random_tokens(2 * BATCH)
load_plain: Callable[..., nn.Module] = AutoModelForCausalLM.from_pretrained


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("models") / "llama")


def inputs_of(model: nn.Module, paths: list[str]) -> dict[str, Tensor]:
    """What each module is given first, in float64."""
    found: dict[str, Tensor] = {}
    for path in paths:

        def keep(_: nn.Module, args: tuple[Tensor], path: str = path) -> None:
            found[path] = args[0].flatten(0, -2)

        model.get_submodule(path).register_forward_pre_hook(keep)
    with torch.no_grad():
        model(input_ids=TOKENS, use_cache=False)
    return found


@pytest.mark.parametrize("outlier", [1.5, 3.0])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_outliers_are_counted_over_the_whole_block(name: str, outlier: float, tmp_path: Path) -> None:
    model = save_model(name, tmp_path / name)
    runner = make_runner(model)
    plain = load_plain(model, dtype=torch.float64)
    linears = runner.structure.linears
    inputs = inputs_of(plain, [linear.path for linear in linears])
    expected = []
    for block in runner.structure.blocks:
        importances = []
        for linear in block.linears:
            weight = linear.turn(plain.get_parameter(f"{linear.path}.weight").detach())
            importances.append((weight.abs() * inputs[linear.path].norm(dim=0)).flatten())
        together = torch.cat(importances)
        expected.append(float((together > outlier * together.mean()).double().mean()))
    found = outlier_ratios(runner, TOKENS.numpy(), outlier)
    assert found == pytest.approx(expected, abs=2e-4)
    assert min(found) > 0
    assert len(set(found)) > 1


def test_influences_are_turns_of_the_residual_stream(llama: Path) -> None:
    plain = load_plain(llama, dtype=torch.float64)
    layers = [f"model.layers.{i}" for i in range(3)]
    between = [f"{layer}.post_attention_layernorm" for layer in layers]
    states = inputs_of(plain, [*layers, *between, "model.norm"])
    found = influences(make_runner(llama), TOKENS.numpy())
    for i, layer in enumerate(layers):
        before, middle = states[layer], states[between[i]]
        after = states[layers[i + 1]] if i < 2 else states["model.norm"]
        pairs = {"block": (before, after), "attention": (before, middle), "mlp": (middle, after)}
        expected = {
            name: float((1 - torch.cosine_similarity(a, b, dim=-1)).mean()) for name, (a, b) in pairs.items()
        }
        assert found[i] == pytest.approx(expected, abs=1e-5)


def test_blocks_are_left_dense(llama: Path) -> None:
    runner = make_runner(llama)
    first = influences(runner, TOKENS.numpy())
    outlier_ratios(runner, TOKENS.numpy())
    assert influences(runner, TOKENS.numpy()) == first
