import copy
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BloomConfig, PreTrainedModel

from paretopress.evaluators.runner.launch import Pace
from paretopress.evaluators.runner.runner import BlockRunner
from paretopress.spaces.model.checkpoint import Checkpoint
from paretopress.spaces.model.dense_model import DenseModel
from paretopress.spaces.model.structure import find_structure
from tests.architectures import (
    ARCHITECTURES,
    LENGTH,
    SLIDING,
    core_first,
    opened,
    random_model,
    random_tokens,
    save_model,
)
from tests.spaces.model.test_checkpoint import QUICKSTART, edit_config, edit_weights

BATCH = 2
Weights = Mapping[str, Tensor]
Dropped = Mapping[int, Collection[str]]
Models = Callable[[str], Path]
Runners = Callable[[str], BlockRunner]
load_plain: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_pretrained

# Written down here, not taken from the structure: the modules whose outputs are the branches' contributions.
BRANCHES = {
    "gpt2": ("attn", "mlp"),
    "gpt_neo": ("attn", "mlp"),
    "gpt_neox": ("attention", "mlp"),
    "opt": ("self_attn", "fc2"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The directory of an architecture's model, saved once."""
    root = tmp_path_factory.mktemp("models")

    def directory(name: str) -> Path:
        return root / name if (root / name).is_dir() else save_model(name, root / name)

    return directory


@cache
def plain_model(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    """What transformers loads; copy it before changing it."""
    return load_plain(directory, dtype=dtype)


def make_runner(
    directory: Path,
    *,
    micro_batch: int = BATCH,
    length: int = LENGTH,
    dtype: torch.dtype = torch.float32,
    pace: Pace | None = None,
    device: str = "cpu",
) -> BlockRunner:
    return BlockRunner(
        opened(directory),
        device=device,
        dtype=dtype,
        micro_batch=micro_batch,
        length=length,
        pace=pace,
    )


@pytest.fixture(scope="module")
def runners(models: Models) -> Runners:
    """A float32 runner of an architecture's model, made once: every test leaves its blocks dense."""
    return cache(lambda name: make_runner(models(name)))


def run_blocks(runner: BlockRunner, tokens_BT: Tensor, weights: Weights, dropped: Dropped) -> Tensor:
    """Logits_BTV."""
    states_BTD = runner.embed(tokens_BT)
    for block in runner.structure.blocks:
        with runner.block(block.index) as loaded:
            own = {linear.path for linear in block.linears}
            loaded.install(
                {path: w for path, w in weights.items() if path in own}, dropped.get(block.index, ())
            )
            states_BTD = loaded(states_BTD)
    return runner.logits(states_BTD.flatten(0, 1)).view(*tokens_BT.shape, -1)


def run_plain(
    directory: Path,
    tokens_BT: Tensor,
    weights: Weights,
    dropped: Dropped,
    blocks_path: str = "",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Logits_BTV of the model as transformers loads and runs it, contributions zeroed by hooks."""
    model = copy.deepcopy(plain_model(directory, dtype))
    children = BRANCHES.get(directory.name, ("self_attn", "mlp"))
    for path, weight in weights.items():
        parameter = model.get_parameter(f"{path}.weight")
        transposed = type(model.get_submodule(path)).__name__ == "Conv1D"
        parameter.data = (weight.T if transposed else weight).to(parameter.dtype)
    for index, kinds in dropped.items():
        for kind in kinds:
            child = children[kind == "mlp"]
            model.get_submodule(f"{blocks_path}.{index}.{child}").register_forward_hook(zeroed)
    with torch.no_grad():
        logits: Tensor = model(input_ids=tokens_BT, use_cache=False).logits
    return logits


def zeroed(_: nn.Module, __: tuple[Any, ...], output: Tensor | tuple[Any, ...]) -> Tensor | tuple[Any, ...]:
    if isinstance(output, Tensor):
        return output * 0
    return (output[0] * 0, *output[1:])


def rounded(runner: BlockRunner, bits: int = 3) -> dict[str, Tensor]:
    """Every block linear as (out, in), rounded to nearest in one symmetric group per row."""
    found = {}
    for linear in runner.structure.linears:
        weight = linear.turn(runner.checkpoint.tensor(f"{linear.path}.weight")).float()
        scale = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        found[linear.path] = (weight / scale).round() * scale
    return found


def divergence(teacher_BTV: Tensor, student_BTV: Tensor) -> float:
    """Mean KL in nats per token, in float64."""
    p, q = teacher_BTV.double().log_softmax(-1), student_BTV.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def assert_equal_models(expected_BTV: Tensor, found_BTV: Tensor) -> None:
    torch.testing.assert_close(found_BTV, expected_BTV, rtol=1e-5, atol=1e-5)
    assert divergence(expected_BTV, found_BTV) < 1e-9


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_dense_model_is_that_of_transformers(name: str, models: Models, runners: Runners) -> None:
    runner, tokens_BT = runners(name), random_tokens(BATCH)
    logits_BTV = run_blocks(runner, tokens_BT, {}, {})
    assert logits_BTV.dtype == torch.float32
    assert_equal_models(run_plain(models(name), tokens_BT, {}, {}), logits_BTV)


@pytest.mark.parametrize("name", core_first(ARCHITECTURES))
def test_changed_weights_are_those_of_the_plain_model(name: str, models: Models, runners: Runners) -> None:
    runner, tokens_BT = runners(name), random_tokens(BATCH)
    weights = rounded(runner)
    expected_BTV = run_plain(models(name), tokens_BT, weights, {})
    assert_equal_models(expected_BTV, run_blocks(runner, tokens_BT, weights, {}))
    assert divergence(run_plain(models(name), tokens_BT, {}, {}), expected_BTV) > 0.1


@pytest.mark.parametrize("name", core_first(ARCHITECTURES))
def test_dropped_branches_contribute_zero(name: str, models: Models, runners: Runners) -> None:
    runner, tokens_BT = runners(name), random_tokens(BATCH)
    dropped: Dropped = {0: ["attention"], 1: ["mlp"], 2: ["attention", "mlp"]}
    path = runner.structure.blocks_path
    expected_BTV = run_plain(models(name), tokens_BT, {}, dropped, path)
    assert_equal_models(expected_BTV, run_blocks(runner, tokens_BT, {}, dropped))
    assert divergence(run_plain(models(name), tokens_BT, {}, {}), expected_BTV) > 0.01


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "gpt_neox", "opt"])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mix_of_weights_and_drops_is_the_plain_model(
    name: str, models: Models, runners: Runners, data: st.DataObject
) -> None:
    runner, tokens_BT = runners(name), random_tokens(BATCH, seed=1)
    paths = [linear.path for linear in runner.structure.linears]
    chosen = data.draw(st.sets(st.sampled_from(paths)))
    kinds = st.sets(st.sampled_from(["attention", "mlp"]))
    dropped = data.draw(st.dictionaries(st.sampled_from(range(len(runner.structure.blocks))), kinds))
    weights = {path: weight for path, weight in rounded(runner).items() if path in chosen}
    expected_BTV = run_plain(models(name), tokens_BT, weights, dropped, runner.structure.blocks_path)
    assert_equal_models(expected_BTV, run_blocks(runner, tokens_BT, weights, dropped))


@pytest.mark.parametrize("name", SLIDING)
def test_a_full_mask_in_sliding_layers_is_noticed(name: str, models: Models, tmp_path: Path) -> None:
    shutil.copytree(models(name), tmp_path / name)
    edit_config(tmp_path / name, **{SLIDING[name]: 64})
    tokens_BT = random_tokens(BATCH)
    expected_BTV = run_plain(models(name), tokens_BT, {}, {})
    wrong_BTV = run_blocks(make_runner(tmp_path / name), tokens_BT, {}, {})
    assert divergence(expected_BTV, wrong_BTV) > 1e-3
    with pytest.raises(AssertionError):
        assert_equal_models(expected_BTV, wrong_BTV)


@pytest.mark.parametrize("cap", ["final_logit_softcapping", "attn_logit_softcapping"])
def test_a_missing_soft_cap_is_noticed(cap: str, models: Models, tmp_path: Path) -> None:
    plain = plain_model(models("gemma2"), torch.float32)
    if cap.startswith("attn") and plain.config._attn_implementation == "sdpa":
        pytest.skip(
            "this transformers runs Gemma 2 with sdpa, which leaves the cap out of the plain model, too"
        )
    shutil.copytree(models("gemma2"), tmp_path / "gemma2")
    edit_config(tmp_path / "gemma2", **{cap: None})
    tokens_BT = random_tokens(BATCH)
    expected_BTV = run_plain(models("gemma2"), tokens_BT, {}, {})
    with pytest.raises(AssertionError):
        assert_equal_models(expected_BTV, run_blocks(make_runner(tmp_path / "gemma2"), tokens_BT, {}, {}))


def test_a_block_leaves_the_device_after_use(models: Models) -> None:
    runner = make_runner(models("llama"))
    with runner.block(1) as loaded:
        loaded.install(rounded_of(runner, 1), ["mlp"])
        module = loaded._module
    devices = {name: parameter.device.type for name, parameter in module.named_parameters()}
    assert {device for name, device in devices.items() if "norm" in name} == {"cpu"}
    assert {device for name, device in devices.items() if "norm" not in name} == {"meta"}
    assert type(module.get_submodule("mlp")).__name__ == "LlamaMLP"


@pytest.mark.parametrize("name", core_first(ARCHITECTURES))
def test_blocks_compile_as_a_whole_and_share_it(
    name: str, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced only: what is compiled from the traces needs a GPU to be of use."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    plain, compiled = make_runner(models(name)), make_runner(models(name), pace=Pace(compiled=True))
    torch._dynamo.utils.counters.clear()
    tokens_BT, weights = random_tokens(BATCH), rounded(plain)
    for dropped in ({}, {1: ["attention"], 2: ["attention"]}):
        for installed in ({}, weights):
            expected_BTV = run_blocks(plain, tokens_BT, installed, dropped)
            assert torch.equal(run_blocks(compiled, tokens_BT, installed, dropped), expected_BTV)
    kinds = 2 if name in SLIDING or name == "gpt_neo" else 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2 * kinds


def test_what_cannot_be_compiled_is_answered_with_the_remedy(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backend(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    runner = make_runner(models("llama"), pace=Pace(compiled=True))
    with (
        runner.block(0) as loaded,
        pytest.raises(ValueError, match=r"layers\.0 cannot be compiled .*; set evaluation\.compile=false"),
    ):
        loaded(runner.embed(random_tokens(BATCH)))


def rounded_of(runner: BlockRunner, index: int) -> dict[str, Tensor]:
    prefix = runner.structure.blocks[index].path + "."
    return {path: weight for path, weight in rounded(runner).items() if path.startswith(prefix)}


@pytest.mark.parametrize("name", core_first(ARCHITECTURES))
def test_a_row_does_not_depend_on_the_others(name: str, models: Models) -> None:
    runner = make_runner(models(name), micro_batch=3)
    tokens_BT, others_BT = random_tokens(3, seed=2), random_tokens(3, seed=3)
    others_BT[1] = tokens_BT[1]
    dropped: Dropped = {1: ["mlp"]}
    first, second = (run_blocks(runner, t, rounded(runner), dropped) for t in (tokens_BT, others_BT))
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize("name", core_first(ARCHITECTURES))
def test_installing_nothing_restores_the_dense_block(name: str, runners: Runners) -> None:
    runner = runners(name)
    states_BTD = runner.embed(random_tokens(BATCH))
    with runner.block(1) as loaded:
        dense_BTD = loaded(states_BTD)
        modules = dict(loaded._module.named_modules())
        parameters = {key: value.clone() for key, value in loaded._module.named_parameters()}
        loaded.install(rounded_of(runner, 1), ["attention"])
        assert not torch.equal(loaded(states_BTD), dense_BTD)
        loaded.install({}, ["attention", "mlp"])
        loaded.install({})
        assert torch.equal(loaded(states_BTD), dense_BTD)
        assert dict(loaded._module.named_modules()) == modules
        for key, value in loaded._module.named_parameters():
            assert torch.equal(parameters[key], value)
    with runner.block(1) as loaded:
        assert torch.equal(loaded(states_BTD), dense_BTD)


def test_a_block_is_dense_again_after_an_error(models: Models) -> None:
    runner = make_runner(models("llama"))
    states_BTD = runner.embed(random_tokens(BATCH))
    with runner.block(0) as loaded:
        dense_BTD = loaded(states_BTD)

    def interrupt() -> None:
        with runner.block(0) as loaded:
            loaded.install({}, ["mlp"])
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        interrupt()
    with runner.block(0) as loaded:
        assert torch.equal(loaded(states_BTD), dense_BTD)


@pytest.mark.parametrize("name", core_first(ARCHITECTURES))
def test_a_dropped_branch_does_not_run(name: str, runners: Runners) -> None:
    runner = runners(name)
    states_BTD = runner.embed(random_tokens(BATCH))
    attention, mlp = runner.structure.blocks[0].branches
    for dropped, kept in ((attention, mlp), (mlp, attention)):
        poison = {
            linear.path: torch.full((linear.out_features, linear.in_features), torch.nan)
            for linear in dropped.linears
        }
        with runner.block(0) as loaded:
            loaded.install(poison, [dropped.kind])
            output_BTD, inputs = loaded.record(states_BTD)
            assert bool(output_BTD.isfinite().all())
            assert set(inputs) == {linear.path for linear in kept.linears}


@pytest.mark.parametrize("name", core_first(ARCHITECTURES))
def test_recorded_inputs_are_those_of_the_plain_model(name: str, models: Models, runners: Runners) -> None:
    runner, tokens_BT = runners(name), random_tokens(BATCH)
    plain, expected = plain_model(models(name), torch.float32), {}
    with ExitStack() as hooks, torch.no_grad():
        for linear in runner.structure.linears:

            def keep(_: nn.Module, args: tuple[Tensor, ...], path: str = linear.path) -> None:
                expected[path] = args[0].reshape(BATCH, LENGTH, -1)

            hooks.callback(plain.get_submodule(linear.path).register_forward_pre_hook(keep).remove)
        plain(input_ids=tokens_BT, use_cache=False)
    states_BTD = runner.embed(tokens_BT)
    for block in runner.structure.blocks:
        with runner.block(block.index) as loaded:
            alone_BTD = loaded(states_BTD)
            states_BTD, inputs = loaded.record(states_BTD)
        assert torch.equal(states_BTD, alone_BTD)
        assert set(inputs) == {linear.path for linear in block.linears}
        for path, inputs_BTI in inputs.items():
            torch.testing.assert_close(inputs_BTI, expected[path], rtol=1e-5, atol=1e-5)
        for branch in block.branches:
            for group in branch.groups:
                assert len({inputs[path].data_ptr() for path in group}) == 1


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt"])
@pytest.mark.parametrize("positions", [1, 7, LENGTH, 5 * LENGTH + 1])
def test_logits_are_those_of_each_position(name: str, positions: int, runners: Runners) -> None:
    runner = runners(name)
    generator = torch.Generator().manual_seed(positions)
    states_PD = torch.randn((positions, runner.hidden), generator=generator)
    logits_PV = runner.logits(states_PD)
    assert torch.equal(runner.logits(states_PD), logits_PV)
    expected = [runner.logits(states_PD[i : i + 1]) for i in range(0, positions, 9)]
    torch.testing.assert_close(logits_PV[::9], torch.cat(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3_text"])
def test_other_embeddings_and_heads(name: str, models: Models, runners: Runners) -> None:
    runner, tokens_BT = runners(name), random_tokens(BATCH)
    dense_BTV = run_blocks(runner, tokens_BT, {}, {})
    ends = runner.structure.ends
    generator = torch.Generator().manual_seed(0)
    given = {
        end.path: torch.randn((end.out_features, end.in_features), generator=generator)
        for end in ends.linears
    }
    for path, weight in given.items():
        runner.install_ends({path: weight})
        # In a tied model the plain model's one parameter is set through either path, too.
        plain = copy.deepcopy(plain_model(models(name), torch.float32))
        with torch.no_grad():
            plain.get_parameter(f"{path}.weight").copy_(weight)
            expected_BTV = plain(input_ids=tokens_BT, use_cache=False).logits
        assert_equal_models(expected_BTV, run_blocks(runner, tokens_BT, {}, {}))
        assert divergence(dense_BTV, expected_BTV) > 0.1
    runner.install_ends({})
    assert torch.equal(run_blocks(runner, tokens_BT, {}, {}), dense_BTV)
    with pytest.raises(ValueError, match=r"'model\.norm' is neither embedding nor head"):
        runner.install_ends({"model.norm": torch.zeros(1)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_half_precision_is_that_of_the_plain_model(name: str, dtype: torch.dtype, models: Models) -> None:
    runner, tokens_BT = make_runner(models(name), dtype=dtype), random_tokens(BATCH)
    found_BTV = run_blocks(runner, tokens_BT, {}, {})
    expected_BTV = run_plain(models(name), tokens_BT, {}, {}, dtype=dtype)
    assert found_BTV.dtype == torch.float32
    # The plain model rounds its logits; caps then amplify nothing.
    step = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(found_BTV, expected_BTV.float(), rtol=step, atol=step)


def test_the_head_accumulates_and_returns_float32(models: Models) -> None:
    runner = make_runner(models("llama"), dtype=torch.bfloat16)
    states_PD = torch.randn((5, runner.hidden), generator=torch.Generator().manual_seed(0)).bfloat16()
    norm = load_plain(models("llama"), dtype=torch.bfloat16).get_submodule("model.norm")
    head = runner.checkpoint.tensor("lm_head.weight").bfloat16()
    with torch.no_grad():
        expected_PV = norm(states_PD).double() @ head.double().T
    torch.testing.assert_close(runner.logits(states_PD).double(), expected_PV, rtol=1e-5, atol=1e-5)


def test_files_without_the_prefix_run_the_same(models: Models, tmp_path: Path) -> None:
    shutil.copytree(models("gpt2"), tmp_path / "gpt2")
    edit_weights(tmp_path / "gpt2", lambda t: {name.removeprefix("transformer."): x for name, x in t.items()})
    tokens_BT = random_tokens(BATCH)
    with_prefix, without = make_runner(models("gpt2")), make_runner(tmp_path / "gpt2")
    assert torch.equal(run_blocks(with_prefix, tokens_BT, {}, {}), run_blocks(without, tokens_BT, {}, {}))


def test_a_residual_that_is_added_inside_the_branch_survives_a_drop(tmp_path: Path) -> None:
    config = BloomConfig(vocab_size=128, hidden_size=32, n_layer=2, n_head=4)
    random_model(config).save_pretrained(tmp_path)
    runner, tokens_BT = make_runner(tmp_path), random_tokens(BATCH)
    assert_equal_models(run_plain(tmp_path, tokens_BT, {}, {}), run_blocks(runner, tokens_BT, {}, {}))
    states_BTD = runner.embed(tokens_BT)
    with runner.block(0) as loaded:
        loaded.install({}, ["attention", "mlp"])
        assert torch.equal(loaded(states_BTD), states_BTD)


def test_the_quickstart_model() -> None:
    runner, tokens_BT = make_runner(QUICKSTART), random_tokens(BATCH)
    assert [len(runner.structure.blocks), len(runner.structure.linears)] == [8, 56]
    assert_equal_models(run_plain(QUICKSTART, tokens_BT, {}, {}), run_blocks(runner, tokens_BT, {}, {}))


def test_no_global_state_changes(models: Models) -> None:
    before = torch.random.get_rng_state()
    runner = make_runner(models("gemma2"))
    run_blocks(runner, random_tokens(BATCH), {}, {0: ["mlp"]})
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_wrong_requests_are_answered(models: Models) -> None:
    runner = make_runner(models("llama"))
    with pytest.raises(ValueError, match=r"tokens have shape \(3, 24\); this runner takes \(2, 24\)"):
        runner.embed(random_tokens(3))
    with runner.block(0) as loaded:
        with pytest.raises(
            ValueError, match=r"states have shape \(3, 5, 32\); this block takes 2 sequences at a time"
        ):
            loaded(torch.zeros(3, 5, 32))
        with pytest.raises(
            ValueError, match=r"'model\.layers\.1\.mlp\.up_proj' is no linear layer of model\.layers\.0"
        ):
            loaded.install({"model.layers.1.mlp.up_proj": torch.zeros(48, 32)})
        with pytest.raises(ValueError, match=r"up_proj' has shape \(32, 48\); give \(out, in\) = \(48, 32\)"):
            loaded.install({"model.layers.0.mlp.up_proj": torch.zeros(32, 48)})
        with pytest.raises(ValueError, match="branch 'attn' is unknown; a block has attention and mlp"):
            loaded.install({}, ["attn"])
    with (
        runner.block(0, dense=False) as loaded,
        pytest.raises(ValueError, match=r"layers\.0\.mlp\.gate_proj has no weight; install one, or load"),
    ):
        loaded.install({}, ["attention"])


def test_blocks_that_see_the_tokens_are_refused(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(models("llama"))
    structure = find_structure(checkpoint.skeleton())
    plain_skeleton = checkpoint.skeleton

    def telling(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        skeleton = plain_skeleton(dtype)
        inner = skeleton.get_submodule("model")
        forward = inner.forward

        def tell(input_ids: Tensor, **rest: object) -> object:
            return forward(input_ids=input_ids, tokens=input_ids, **rest)

        monkeypatch.setattr(inner, "forward", tell)
        return skeleton

    monkeypatch.setattr(checkpoint, "skeleton", telling)
    with pytest.raises(ValueError, match="LlamaForCausalLM hands block 0 values that depend on the tokens"):
        BlockRunner(
            DenseModel(checkpoint, structure), device="cpu", dtype=torch.float32, micro_batch=1, length=4
        )
