"""Refitted levels against the plain model with its weights replaced by hand, and as resumable parts."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import AutoModelForCausalLM, PreTrainedModel

from paretopress.evaluators.levels.building import CalibratedBuilderConfig
from paretopress.evaluators.levels.calibration import CalibrationStates
from paretopress.evaluators.levels.refitting import (
    CORRECTION,
    RIDGE,
    Passage,
    corrected,
    refit_database,
    refit_labels,
)
from paretopress.spaces.model.checkpoint import Checkpoint
from paretopress.spaces.model.structure import Linear, Structure, find_structure
from paretopress.spaces.storage.database import LevelDatabase
from tests.architectures import save_model
from tests.evaluators.levels.test_building import build_all, tokens
from tests.evaluators.runner.test_runner import make_runner

CPU = torch.device("cpu")
CONFIG = CalibratedBuilderConfig()
MASKED = CalibratedBuilderConfig(pruner="magnitude")
"""Nothing but zeros is put into the corrected weight, so that it can be read off."""


def structure_of(model: Path) -> Structure:
    return find_structure(Checkpoint(model).skeleton())


def assignment_of(model: Path, label: str) -> dict[str, str]:
    return {linear.path: label for linear in structure_of(model).linears}


def refit_all(
    model: Path, folder: Path, assignment: Mapping[str, str], config: CalibratedBuilderConfig = CONFIG
) -> LevelDatabase:
    database = LevelDatabase(folder, {"assignment": dict(assignment)})
    refit_database(database, assignment, make_runner(model), tokens(), config)
    return database


def plain(model: Path) -> PreTrainedModel:
    found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    return found


def put(model: PreTrainedModel, linear: Linear, weight_OI: Tensor) -> None:
    with torch.no_grad():
        model.get_parameter(f"{linear.path}.weight").copy_(linear.turn(weight_OI.double()))


def weight_of(model: PreTrainedModel, linear: Linear) -> Tensor:
    return linear.turn(model.get_parameter(f"{linear.path}.weight").detach())


@torch.no_grad()
def look(model: PreTrainedModel, path: str, stream: str | None) -> tuple[Tensor, Tensor]:
    """Inputs_PI of a layer, and what enters the module `stream` (P, D)."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> RemovableHandle:
        def hook(_: object, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
            found = args[0] if args else kwargs["hidden_states"]
            seen[name] = found.reshape(-1, found.shape[-1])

        return model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)

    handles = [keep(name) for name in dict.fromkeys((path, stream or path))]
    model(input_ids=torch.from_numpy(tokens()), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen[path], seen[stream or path]


STREAMS: dict[str, dict[str, str | None]] = {
    "llama": {
        "self_attn.o_proj": "input_layernorm",
        "mlp.down_proj": "post_attention_layernorm",
    },
    "gpt2": {"attn.c_proj": "ln_1", "mlp.c_proj": "ln_2"},
    "opt": {"self_attn.out_proj": "self_attn_layer_norm", "fc2": "final_layer_norm"},
    "gpt_neox": {"attention.dense": "input_layernorm", "mlp.dense_4h_to_h": None},
    "gemma2": {},
}
"""Layers that add to the residual stream, and the module that reads it where their branch begins."""


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_a_layer_makes_good_what_those_before_it_lost(name: str, tmp_path: Path) -> None:
    model = save_model(name, tmp_path / name)
    database = refit_all(model, tmp_path / "refit", assignment_of(model, "s50"), MASKED)
    dense, compressed = plain(model), plain(model)
    for block in structure_of(model).blocks[:2]:
        linears = {linear.path: linear for linear in block.linears}
        for branch in block.branches:
            for group in branch.groups:
                found = {path: database.load(path, "s50", CPU).dense() for path in group}
                stream = STREAMS[name].get(group[0].removeprefix(f"{block.path}."))
                place = f"{block.path}.{stream}" if stream else None
                (y, dense_PD), (x, states_PD) = (look(m, group[0], place) for m in (dense, compressed))
                for path in group:
                    weight = weight_of(dense, linears[path])
                    lag = (y - x) @ weight.T
                    lag += dense_PD - states_PD if stream else 0
                    hessian = x.T @ x
                    ridge = RIDGE * len(hessian) / tokens().size * hessian.diagonal().mean()
                    damped = hessian + ridge * torch.eye(len(hessian))
                    aim = weight + CORRECTION * (lag.T @ x) @ torch.linalg.inv(damped)
                    kept = found[path] != 0
                    assert kept.float().mean() == pytest.approx(0.5, abs=0.01)
                    difference = found[path].double() - aim
                    assert difference[kept].abs().max() < 2e-3 * aim.abs().max()
                    if group != block.branches[0].groups[0] or block.index:
                        assert (aim - weight).abs().max() > 5e-3 * aim.abs().max()
                    put(compressed, linears[path], found[path])


@pytest.mark.parametrize("name", sorted(STREAMS))
def test_layers_that_add_to_the_stream_are_found_by_what_they_do(name: str, tmp_path: Path) -> None:
    model = save_model(name, tmp_path / name)
    runner, block = make_runner(model), structure_of(model).blocks[0]
    dense, states = CalibrationStates(runner, tokens()), CalibrationStates(runner, tokens())
    found = {}
    with runner.block(0) as loaded:
        passage = Passage(loaded, (), dense, states)
        for linear in block.linears:
            weight = linear.turn(runner.checkpoint.tensor(f"{linear.path}.weight"))
            found[linear.path.removeprefix(f"{block.path}.")] = passage.silent_before(linear.path, weight)
    assert {path for path, silent in found.items() if silent} == set(STREAMS[name])
    assert {silent for silent in found.values() if silent} <= {("attention", "mlp"), ("mlp",)}


def test_the_first_layers_are_those_of_the_level_database(tmp_path: Path) -> None:
    model = save_model("llama", tmp_path / "llama")
    refitted = refit_all(model, tmp_path / "refit", assignment_of(model, "w3g16"))
    levels = build_all(model, tmp_path / "levels")
    attention, mlp = structure_of(model).blocks[0].branches
    for path in attention.groups[0]:
        assert torch.equal(refitted.load(path, "w3g16", CPU).dense(), levels.load(path, "w3g16", CPU).dense())
        assert refitted.errors()[path] == pytest.approx({"w3g16": levels.errors()[path]["w3g16"]})
    for path in mlp.groups[-1]:
        assert not torch.equal(
            refitted.load(path, "w3g16", CPU).dense(), levels.load(path, "w3g16", CPU).dense()
        )


@pytest.mark.parametrize("seed", range(3))
def test_the_step_leads_to_the_least_squares_solution(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((200, 8), generator=generator, dtype=torch.float64)
    y = x + 0.3 * torch.randn((200, 8), generator=generator, dtype=torch.float64)
    e = torch.randn((200, 5), generator=generator, dtype=torch.float64)
    weight = torch.randn((5, 8), generator=generator, dtype=torch.float64)
    best = torch.linalg.lstsq(x, y @ weight.T + e).solution.T
    lag = ((y - x) @ weight.T + e).T @ x
    found = corrected(weight, x.T @ x, lag, 1e-9)
    torch.testing.assert_close(
        found, ((1 - CORRECTION) * weight + CORRECTION * best).float(), rtol=1e-4, atol=1e-5
    )
    hessian = x.T @ x
    assert torch.equal(corrected(weight, hessian, torch.zeros_like(lag), 0.01), weight.float())
    assert torch.equal(hessian, x.T @ x)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_16_bits_refit_much_as_32_do(name: str, device: str, tmp_path: Path) -> None:
    model = save_model(name, tmp_path / name)
    assignment = assignment_of(model, "w4g16")
    fine = refit_all(model, tmp_path / "fine", assignment)
    coarse = LevelDatabase(tmp_path / "coarse", {"assignment": assignment})
    runner = make_runner(model, dtype=torch.bfloat16, device=device)
    refit_database(coarse, assignment, runner, tokens(), CONFIG)
    assert coarse.errors().keys() == fine.errors().keys() == assignment.keys()
    for path, row in fine.errors().items():
        assert coarse.errors()[path] == pytest.approx(row, rel=0.25)


def test_an_interrupted_refit_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    model = save_model("llama", tmp_path / "llama")
    assignment = assignment_of(model, "w3g16")
    refit_all(model, tmp_path / "whole", assignment)

    def stop(part: str) -> None:
        if part == "block-000":
            raise KeyboardInterrupt

    half = LevelDatabase(tmp_path / "half", {"assignment": assignment})
    with pytest.raises(KeyboardInterrupt):
        refit_database(half, assignment, make_runner(model), tokens(), CONFIG, progress=stop)
    assert [path.name for path in (tmp_path / "half").glob("*.safetensors")] == ["block-000.safetensors"]
    refit_all(model, tmp_path / "half", assignment)
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "half" / path.name).read_bytes()
    ran: list[str] = []
    again = LevelDatabase(tmp_path / "half", {"assignment": assignment})
    refit_database(again, assignment, make_runner(model), tokens(), CONFIG, progress=ran.append)
    assert not ran, "a complete refit costs no forward pass"


def test_what_a_dropped_branch_gave_is_made_good_by_the_next_ones(tmp_path: Path) -> None:
    model = save_model("llama", tmp_path / "llama")
    attention, mlp = structure_of(model).blocks[0].branches
    dropped = {linear.path: "drop" for linear in attention.linears}
    only_mlp = {linear.path: "s50" for linear in mlp.linears}
    database = refit_all(model, tmp_path / "refit", dropped | only_mlp, MASKED)
    assert set(database.errors()) == set(only_mlp)
    assert not database.has("block-001")
    kept = refit_all(model, tmp_path / "kept", only_mlp, MASKED)
    for path in only_mlp:
        assert not torch.equal(database.load(path, "s50", CPU).dense(), kept.load(path, "s50", CPU).dense())


def test_a_compressed_embedding_stands_before_the_first_block(tmp_path: Path) -> None:
    model = save_model("llama", tmp_path / "llama")
    embedding = structure_of(model).ends.embedding.path
    assignment = assignment_of(model, "w3g16") | {embedding: "w2g16"}
    database = refit_all(model, tmp_path / "refit", assignment)
    without = refit_all(model, tmp_path / "without", assignment_of(model, "w3g16"))
    assert database.load(embedding, "w2g16", CPU).dense().shape == (128, 32)
    first = structure_of(model).linears[0].path
    assert not torch.equal(
        database.load(first, "w3g16", CPU).dense(), without.load(first, "w3g16", CPU).dense()
    )


def test_labels_leave_out_what_has_no_level() -> None:
    assert refit_labels({"b": "w4", "a": "s50", "c": "drop", "d": "dense"}) == {"a": ("s50",), "b": ("w4",)}
