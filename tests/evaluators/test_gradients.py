"""The backward pass and the Fisher scores, against autograd through the whole model in float64."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from paretopress.evaluators.building import CalibratedBuilderConfig, build_database, labels_to_build
from paretopress.evaluators.gradients import GradientRunner, UnitErrors, fisher_scores
from paretopress.spaces.checkpoint import Checkpoint
from paretopress.spaces.construction import SpaceConfig, UnitsConfig, build_space
from paretopress.spaces.database import LevelDatabase
from paretopress.spaces.packed import Packed
from paretopress.spaces.space import Space
from paretopress.spaces.structure import find_structure
from tests.architectures import LENGTH, random_tokens, save_model
from tests.evaluators.test_runner import BATCH, run_plain

SEQUENCES = 4
load_plain: Callable[..., nn.Module] = AutoModelForCausalLM.from_pretrained


def make_runner(model: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> GradientRunner:
    checkpoint = Checkpoint(model)
    structure = find_structure(checkpoint.skeleton())
    return GradientRunner(checkpoint, structure, device=device, dtype=dtype, micro_batch=BATCH, length=LENGTH)


def make_space(runner: GradientRunner, *levels: str, drop: str = "branches", ends: bool = False) -> Space:
    return build_space(
        runner.structure,
        SpaceConfig.model_validate({"levels": levels, "drop": drop, "units": UnitsConfig(ends=ends)}),
        parameters={name: p.numel() for name, p in runner.checkpoint.skeleton().named_parameters()},
        dense_bits=32,
    )


def build(runner: GradientRunner, space: Space, folder: Path) -> LevelDatabase:
    labels = labels_to_build(space)
    database = LevelDatabase(folder, {"labels": labels})
    config = CalibratedBuilderConfig(quantizer="rtn", pruner="magnitude")
    build_database(database, labels, runner, random_tokens(SEQUENCES).numpy(), config)
    return database


def reference(model: Path, space: Space, database: LevelDatabase, tokens_NT: Tensor, seed: int) -> UnitErrors:
    """By definition: hooks on every layer of the plain model, one backward pass through all of it."""
    plain = load_plain(model, dtype=torch.float64)
    structure = find_structure(Checkpoint(model).skeleton())
    passed: dict[str, tuple[Tensor, Tensor]] = {}
    for linear in structure.linears:

        def keep(_: nn.Module, args: tuple[Tensor], output: Tensor, path: str = linear.path) -> None:
            output.requires_grad_()
            output.retain_grad()
            passed[path] = (args[0], output)

        plain.get_submodule(linear.path).register_forward_hook(keep)
    logits: Tensor = plain(input_ids=tokens_NT, use_cache=False).logits[:, :-1]
    rng = np.random.default_rng(seed)
    probs = logits.detach().softmax(-1)
    drawn = [
        [
            int(np.searchsorted(np.cumsum(p), u))
            for p, u in zip(row.numpy(), rng.random((len(row), 1), np.float32)[:, 0], strict=True)
        ]
        for row in probs
    ]
    likelihood = logits.log_softmax(-1).gather(-1, torch.tensor(drawn)[..., None]).sum()
    torch.autograd.backward(likelihood)
    found: UnitErrors = {}
    for unit in space.units:
        for label in set(unit.index) - {"dense", "keep", "drop"}:
            for path in unit.modules:
                x, output = passed[path]
                linear = next(n for n in structure.linears if n.path == path)
                weight = linear.turn(plain.get_parameter(f"{path}.weight").detach())
                change = database.load(path, label, torch.device("cpu")).dense().double() - weight
                assert output.grad is not None
                dots = torch.einsum("...o,...i,oi->...", output.grad, x.detach(), change)
                row = found.setdefault(unit.name, {})
                row[label] = row.get(label, 0.0) + float(dots.square().sum()) / 2 / sum(map(len, drawn))
    return found


def without_drops(scores: UnitErrors) -> UnitErrors:
    return {name: row for name, row in scores.items() if "drop" not in row}


# Gemma's logits are capped after the head, GPT-2 stores weights the other way round, OPT projects its ends.
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "opt"])
def test_scores_are_those_of_the_definition(name: str, tmp_path: Path) -> None:
    model = save_model(name, tmp_path / name)
    runner = make_runner(model)
    space = make_space(runner, "w3g16", "s50")
    database = build(runner, space, tmp_path / "levels")
    tokens = random_tokens(SEQUENCES)
    found = fisher_scores(runner, space, database, tokens.numpy(), np.random.default_rng(5))
    expected = reference(model, space, database, tokens, 5)
    assert without_drops(found).keys() == expected.keys()
    for unit, row in expected.items():
        assert found[unit] == pytest.approx(row, rel=2e-4), unit


def test_16_bits_pass_a_block_backwards_nearly_as_well(tmp_path: Path) -> None:
    model = save_model("llama", tmp_path / "llama")
    gradient = 1e-6 * torch.randn((BATCH, LENGTH, 32), generator=torch.Generator().manual_seed(0))
    found = []
    for runner in (make_runner(model), make_runner(model, torch.float16)):
        states = runner.embed(random_tokens(BATCH))
        with runner.block(0) as loaded:
            leaving, passed = runner.backward(loaded, states, gradient)
        found.append([leaving, *(by_output for _, by_output in passed.values())])
    for fine, coarse in zip(*found, strict=True):
        assert float((coarse - fine).norm() / fine.norm()) < 0.02


@pytest.mark.parametrize("magnitude", [2.0**-50, 2.0**50])
def test_gradients_of_any_size_pass_a_block(magnitude: float, tmp_path: Path) -> None:
    runner = make_runner(save_model("llama", tmp_path / "llama"), torch.float16)
    states = runner.embed(random_tokens(BATCH))
    gradient = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
    with runner.block(0) as loaded:
        plain, passed = runner.backward(loaded, states, gradient)
        scaled, also = runner.backward(loaded, states, gradient * magnitude)
    assert torch.equal(scaled / magnitude, plain)
    for path, (_, expected) in passed.items():
        assert torch.equal(also[path][1] / magnitude, expected)


def test_small_changes_of_the_last_layer_diverge_as_scored(tmp_path: Path) -> None:
    """There, positions do not act together, so the mean over draws is the divergence to second order."""
    model = save_model("llama", tmp_path / "llama")
    runner = make_runner(model)
    space = make_space(runner, "dense", "s0", drop="none")
    labels = labels_to_build(space)
    database = LevelDatabase(tmp_path / "levels", {"labels": labels})
    generator = torch.Generator().manual_seed(0)
    last = runner.structure.blocks[-1].linears[-1]
    changed: dict[str, Tensor] = {}
    for linear in runner.structure.linears:
        weight = runner.checkpoint.tensor(f"{linear.path}.weight")
        noise = torch.randn(weight.shape, generator=generator)
        changed[linear.path] = (weight + 0.01 * noise).half().float()
    levels = {path: {"s0": stored(weight)} for path, weight in changed.items()}
    database.write("block-000", levels, {path: {"s0": 0.0} for path in levels})
    tokens = random_tokens(SEQUENCES)
    seeds = range(15)
    scores = [
        fisher_scores(runner, space, database, tokens.numpy(), np.random.default_rng(seed))[last.path]["s0"]
        for seed in seeds
    ]
    dense, other = (
        run_plain(model, tokens, weights, {}, runner.structure.blocks_path, torch.float64).log_softmax(-1)
        for weights in ({}, {last.path: changed[last.path]})
    )
    divergence = (dense.exp() * (dense - other)).sum(-1)[:, :-1].mean()
    assert sum(scores) / len(scores) == pytest.approx(float(divergence), rel=0.15)


def stored(weight_OI: Tensor) -> Packed:
    """All weights, each in 16 bits."""
    mask = torch.full((weight_OI.numel() // 8,), 255, dtype=torch.uint8)
    values = weight_OI.flatten().half()
    return Packed("s0", (weight_OI.shape[0], weight_OI.shape[1]), {"mask": mask, "values": values})


@pytest.mark.parametrize("drop", ["branches", "blocks"])
def test_drops_are_scored_by_what_they_change_in_the_blocks_output(drop: str, tmp_path: Path) -> None:
    model = save_model("llama", tmp_path / "llama")
    runner = make_runner(model)
    space = make_space(runner, drop=drop)
    database = LevelDatabase(tmp_path / "levels", {})
    tokens = random_tokens(SEQUENCES)
    found = fisher_scores(runner, space, database, tokens.numpy(), np.random.default_rng(2))
    plain = load_plain(model, dtype=torch.float32)
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs.append(output if isinstance(output, Tensor) else output[0])

    for layer in plain.get_submodule("model.layers").children():
        layer.register_forward_hook(keep)
    plain(input_ids=tokens, use_cache=False)
    whole = list(outputs)
    probs = plain.get_submodule("lm_head")(plain.get_submodule("model.norm")(whole[-1])).softmax(-1)
    rng = np.random.default_rng(2)
    draws = [rng.random((LENGTH - 1, 1), np.float32) for _ in range(SEQUENCES)]
    drawn = torch.stack(
        [
            torch.searchsorted(p[:-1].cumsum(-1).contiguous(), torch.from_numpy(u))
            for p, u in zip(probs.detach(), draws, strict=True)
        ]
    )
    likelihood = probs[:, :-1].log().gather(-1, drawn).sum()
    gradients = torch.autograd.grad(likelihood, whole)
    for unit in space.units:
        outputs.clear()
        layer = plain.get_submodule(f"model.layers.{unit.block}")
        kinds = ("attention", "mlp") if unit.branch == "block" else (unit.branch,)
        silent = [
            layer.get_submodule({"attention": "self_attn", "mlp": "mlp"}[kind]).register_forward_hook(silence)
            for kind in kinds
        ]
        plain(input_ids=tokens, use_cache=False)
        for handle in silent:
            handle.remove()
        change = (outputs[unit.block] - whole[unit.block]).detach()
        dots = (gradients[unit.block] * change).sum(-1)
        expected = float(dots.square().sum()) / 2 / (SEQUENCES * (LENGTH - 1))
        assert found[unit.name] == pytest.approx({"drop": expected}, rel=1e-3)


def silence(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> object:
    if isinstance(output, Tensor):
        return torch.zeros_like(output)
    return (torch.zeros_like(output[0]), *output[1:])


def test_ends_have_no_score(tmp_path: Path) -> None:
    runner = make_runner(save_model("llama", tmp_path / "llama"))
    space = make_space(runner, "w4g16", ends=True)
    with pytest.raises(
        ValueError, match=r"lies outside the blocks, where fisher has no value; leave that score out"
    ):
        fisher_scores(
            runner,
            space,
            LevelDatabase(tmp_path / "l", {}),
            random_tokens(BATCH).numpy(),
            np.random.default_rng(0),
        )


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_gpu_gives_the_same_scores(name: str, tmp_path: Path) -> None:
    model = save_model(name, tmp_path / name)
    here = make_runner(model)
    space = make_space(here, "w3g16", "s50")
    database = build(here, space, tmp_path / "levels")
    tokens = random_tokens(SEQUENCES).numpy()
    scores = [
        fisher_scores(runner, space, database, tokens, np.random.default_rng(5))
        for runner in (here, make_runner(model, device="cuda"))
    ]
    for unit, row in scores[0].items():
        assert scores[1][unit] == pytest.approx(row, rel=1e-2), unit


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_heads_of_16_bits_are_passed_backwards(name: str, device: str, tmp_path: Path) -> None:
    model = save_model(name, tmp_path / name)
    states = torch.randn((BATCH, LENGTH, 32), generator=torch.Generator().manual_seed(0)).half()
    fine, coarse = (
        make_runner(model, dtype, device)
        .likelihood_gradient(states.to(device, dtype), np.random.default_rng(0))
        .flatten(0, 1)
        for dtype in (torch.float32, torch.float16)
    )
    errors = (coarse - fine).norm(dim=-1) / fine.norm(dim=-1).clamp(min=1e-3)
    # A position whose draw falls between two tokens may draw the other one.
    assert float((errors < 0.05).double().mean()) > 0.9
    assert not fine.view(BATCH, LENGTH, -1)[:, -1].any()
