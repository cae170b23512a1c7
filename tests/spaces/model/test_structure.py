import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, MambaConfig, PreTrainedConfig

from paretopress.spaces.model.checkpoint import Checkpoint
from paretopress.spaces.model.structure import Linear, Structure, find_structure, fused_groups
from tests.architectures import ARCHITECTURES, VOCABULARY, random_model, save_model

LLAMA = (["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"])
LLAMA_FUSED = [{"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}]
EXPECTED = {
    "llama": ("model.layers", "self_attn", "mlp", 3, LLAMA, LLAMA_FUSED),
    "mistral": ("model.layers", "self_attn", "mlp", 3, LLAMA, LLAMA_FUSED),
    "qwen2": ("model.layers", "self_attn", "mlp", 3, LLAMA, LLAMA_FUSED),
    "qwen3": ("model.layers", "self_attn", "mlp", 3, LLAMA, LLAMA_FUSED),
    "gemma2": ("model.layers", "self_attn", "mlp", 4, LLAMA, LLAMA_FUSED),
    "gemma3_text": ("model.layers", "self_attn", "mlp", 4, LLAMA, LLAMA_FUSED),
    "phi3": (
        "model.layers",
        "self_attn",
        "mlp",
        3,
        (["qkv_proj", "o_proj"], ["gate_up_proj", "down_proj"]),
        [],
    ),
    "gpt2": ("transformer.h", "attn", "mlp", 3, (["c_attn", "c_proj"], ["c_fc", "c_proj"]), []),
    "gpt_neox": (
        "gpt_neox.layers",
        "attention",
        "mlp",
        3,
        (["query_key_value", "dense"], ["dense_h_to_4h", "dense_4h_to_h"]),
        [],
    ),
    "opt": (
        "model.decoder.layers",
        "self_attn",
        "",
        3,
        (["q_proj", "k_proj", "v_proj", "out_proj"], ["fc1", "fc2"]),
        [{"q_proj", "k_proj", "v_proj"}],
    ),
    "gpt_neo": (
        "transformer.h",
        "attn",
        "mlp",
        4,
        (
            ["attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.out_proj"],
            ["c_fc", "c_proj"],
        ),
        [{"attention.q_proj", "attention.k_proj", "attention.v_proj"}],
    ),
}
TIED = {"qwen2", "gemma2", "gemma3_text", "gpt2", "opt", "gpt_neo"}


def structure_of(name: str, directory: Path) -> tuple[Checkpoint, Structure]:
    checkpoint = Checkpoint(save_model(name, directory))
    return checkpoint, find_structure(checkpoint.skeleton())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_blocks_branches_and_linears_are_those_of_the_architecture(name: str, tmp_path: Path) -> None:
    _, structure = structure_of(name, tmp_path)
    blocks_path, attention, mlp, count, linears, fused = EXPECTED[name]
    assert structure.blocks_path == blocks_path
    assert [block.index for block in structure.blocks] == list(range(count))
    assert [block.path for block in structure.blocks] == [f"{blocks_path}.{i}" for i in range(count)]
    expected_fused = set()
    for block in structure.blocks:
        assert [branch.kind for branch in block.branches] == ["attention", "mlp"]
        for branch, child, names in zip(block.branches, (attention, mlp), linears, strict=True):
            prefix = f"{block.path}.{child}." if child else f"{block.path}."
            assert {linear.path for linear in branch.linears} == {prefix + name for name in names}
            assert branch.paths == ((prefix[:-1],) if child else tuple(prefix + name for name in names))
            expected_fused |= {
                frozenset(prefix + name for name in group) for group in fused if group <= set(names)
            }
    assert {frozenset(group) for group in fused_groups(structure)} == expected_fused
    assert len(structure.linears) == count * sum(map(len, linears))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shapes_are_those_of_the_stored_tensors(name: str, tmp_path: Path) -> None:
    checkpoint, structure = structure_of(name, tmp_path)
    for linear in (*structure.linears, *structure.ends.linears):
        stored = checkpoint.tensor(f"{linear.path}.weight")
        assert linear.turn(stored).shape == (linear.out_features, linear.in_features)
        assert linear.transposed == (name == "gpt2" and linear in structure.linears)
    assert structure.ends.tied == (name in TIED)
    assert structure.ends.embedding.out_features == structure.ends.head.out_features == VOCABULARY


def test_turning_a_weight_twice_gives_it_back() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    transposed = Linear("a", 2, 3, transposed=True)
    assert transposed.turn(weight).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert torch.equal(transposed.turn(transposed.turn(weight)), weight)
    assert Linear("a", 3, 2).turn(weight) is weight


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    skeleton = Checkpoint(save_model("gpt_neo", tmp_path)).skeleton()
    modules = dict(skeleton.named_modules())
    find_structure(skeleton)
    assert dict(skeleton.named_modules()) == modules
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules.values())


def small_llama() -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )


class Rogue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(4, 4))

    def forward(self, states: Tensor) -> Tensor:
        return states


def test_a_block_with_two_attentions_is_refused() -> None:
    model = random_model(small_llama())
    for block in model.get_submodule("model.layers").children():
        block.add_module("cross_attn", copy.deepcopy(block.get_submodule("self_attn")))
    with pytest.raises(ValueError, match="LlamaForCausalLM has 2 children that take an attention mask"):
        find_structure(model)


def test_a_block_with_two_mlps_is_refused() -> None:
    model = random_model(small_llama())
    for block in model.get_submodule("model.layers").children():
        block.add_module("adapter", nn.Sequential(nn.Linear(16, 16)))
    with pytest.raises(ValueError, match="LlamaForCausalLM has linear layers in mlp, adapter"):
        find_structure(model)


def test_a_matrix_that_is_no_linear_layer_is_refused() -> None:
    model = random_model(small_llama())
    for block in model.get_submodule("model.layers").children():
        block.add_module("rogue", Rogue())
    with pytest.raises(ValueError, match=r"rogue\.matrix of LlamaForCausalLM has 2 dimensions"):
        find_structure(model)


def test_a_layer_at_two_places_is_refused() -> None:
    model = random_model(small_llama())
    for block in model.get_submodule("model.layers").children():
        mlp = block.get_submodule("mlp")
        mlp.add_module("up_proj", mlp.get_submodule("gate_proj"))
    with pytest.raises(ValueError, match="LlamaForCausalLM uses one linear layer twice"):
        find_structure(model)


def test_a_model_without_attention_is_refused() -> None:
    model = random_model(MambaConfig(vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=2))
    with pytest.raises(ValueError, match="MambaForCausalLM has linear layers in nothing besides mixer"):
        find_structure(model)
