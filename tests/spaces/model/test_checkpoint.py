import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertForMaskedLM, PreTrainedModel, T5ForConditionalGeneration

from paretopress.spaces.model.checkpoint import Checkpoint
from tests.architectures import ARCHITECTURES, make_config, random_model, save_model

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart-model"
SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
load_plain: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_pretrained
make_bert: Callable[..., PreTrainedModel] = BertForMaskedLM
make_t5: Callable[..., PreTrainedModel] = T5ForConditionalGeneration


def edit_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(
    directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    path = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(change(tensors), path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_tensor_is_the_one_that_transformers_loads(name: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(save_model(name, tmp_path))
    plain = load_plain(tmp_path, dtype=torch.float32)
    for parameter_name, parameter in plain.named_parameters(remove_duplicate=False):
        assert torch.equal(checkpoint.tensor(parameter_name), parameter)
    assert checkpoint.dtype == torch.float32
    assert checkpoint.architecture == type(plain).__name__


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_buffers_of_the_skeleton_are_those_that_transformers_makes(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    skeleton = Checkpoint(save_model(name, tmp_path)).skeleton(dtype)
    plain = load_plain(tmp_path, dtype=dtype)
    buffers, expected = dict(skeleton.named_buffers()), dict(plain.named_buffers())
    assert buffers.keys() == expected.keys()
    for buffer_name, buffer in buffers.items():
        assert buffer.dtype == expected[buffer_name].dtype
        assert torch.equal(buffer, expected[buffer_name])
        assert buffer.dtype == torch.float32 or "inv_freq" not in buffer_name
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}
    assert not skeleton.training
    assert skeleton.config._attn_implementation == plain.config._attn_implementation


def test_the_skeleton_ties_what_the_model_ties(tmp_path: Path) -> None:
    skeleton = Checkpoint(save_model("gpt2", tmp_path)).skeleton()
    assert skeleton.get_parameter("lm_head.weight") is skeleton.get_parameter("transformer.wte.weight")


def test_files_may_leave_out_the_prefix(tmp_path: Path) -> None:
    with_prefix = Checkpoint(save_model("gpt2", tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    edit_weights(tmp_path / "b", lambda t: {name.removeprefix("transformer."): x for name, x in t.items()})
    without = Checkpoint(tmp_path / "b")
    for name, _ in with_prefix.skeleton().named_parameters(remove_duplicate=False):
        assert torch.equal(without.tensor(name), with_prefix.tensor(name))
    assert without.fingerprint != with_prefix.fingerprint


def test_a_stored_head_of_its_own_is_read(tmp_path: Path) -> None:
    save_model("llama", tmp_path)
    checkpoint = Checkpoint(tmp_path)
    assert not torch.equal(
        checkpoint.tensor("lm_head.weight"), checkpoint.tensor("model.embed_tokens.weight")
    )


def test_a_tied_head_that_differs_from_the_embedding_is_refused(tmp_path: Path) -> None:
    save_model("qwen2", tmp_path)
    edit_weights(tmp_path, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    checkpoint = Checkpoint(tmp_path)
    assert torch.equal(checkpoint.tensor("lm_head.weight"), checkpoint.tensor("model.embed_tokens.weight"))
    edit_weights(tmp_path, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1})
    with pytest.raises(ValueError, match="of Qwen2ForCausalLM differ in the files but are tied"):
        Checkpoint(tmp_path).tensor("lm_head.weight")


def test_shards_are_read_like_one_file(tmp_path: Path) -> None:
    model = load_plain(save_model("llama", tmp_path / "one"), dtype=torch.float32)
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    one, many = Checkpoint(tmp_path / "one"), Checkpoint(tmp_path / "many")
    assert len(one.files) == 1
    assert len(many.files) > 3
    for name, _ in model.named_parameters():
        assert torch.equal(one.tensor(name), many.tensor(name))
    many.files[1].unlink()
    with pytest.raises(ValueError, match=f"lacks {many.files[1].name}, which its index names"):
        Checkpoint(tmp_path / "many")


def test_an_unknown_tensor_is_answered_with_the_nearest(tmp_path: Path) -> None:
    checkpoint = Checkpoint(save_model("llama", tmp_path))
    assert "model.norm.weight" in checkpoint
    assert "model.normal.weight" not in checkpoint
    with pytest.raises(
        ValueError, match=r"'model.normal.weight' of LlamaForCausalLM; .* is 'model.norm.weight'"
    ):
        checkpoint.tensor("model.normal.weight")


def test_the_fingerprint_is_that_of_the_contents(tmp_path: Path) -> None:
    save_model("llama", tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first = Checkpoint(tmp_path / "a").fingerprint
    assert first == Checkpoint(tmp_path / "b").fingerprint
    edit_config(tmp_path / "b", rms_norm_eps=1e-3)
    assert Checkpoint(tmp_path / "b").fingerprint != first
    edit_weights(tmp_path / "a", lambda t: {name: x + (name == "model.norm.weight") for name, x in t.items()})
    assert Checkpoint(tmp_path / "a").fingerprint != first


def test_the_quickstart_model_is_stored_in_half_precision() -> None:
    checkpoint = Checkpoint(QUICKSTART)
    assert checkpoint.dtype == torch.float16
    assert checkpoint.tensor("lm_head.weight").dtype == torch.float16
    assert len(checkpoint.fingerprint) == 64


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        (
            "mixtral",
            {"num_local_experts": 4},
            r"MixtralForCausalLM is a mixture of experts \(num_local_experts is 4\)",
        ),
        (
            "qwen2_moe",
            {"num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
            r"Qwen2MoeForCausalLM is a mixture of experts \(num_experts is 4\)",
        ),
    ],
)
def test_mixtures_of_experts_are_refused(
    model_type: str, settings: dict[str, int], message: str, tmp_path: Path
) -> None:
    config = make_config(model_type, **SMALL, num_key_value_heads=2, **settings)
    random_model(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        Checkpoint(tmp_path)


def test_experts_are_found_without_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config("mixtral", **SMALL, num_key_value_heads=2, num_local_experts=4)
    random_model(config).save_pretrained(tmp_path)
    monkeypatch.setattr("paretopress.spaces.model.checkpoint._refuse", lambda *_: None)
    with pytest.raises(
        ValueError, match=r"MixtralForCausalLM is a mixture of experts \(.*experts.* holds 4\)"
    ):
        Checkpoint(tmp_path).skeleton()


def test_encoders_are_refused(tmp_path: Path) -> None:
    make_bert(make_config("bert", **SMALL)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="BertForMaskedLM is not a decoder-only language model"):
        Checkpoint(tmp_path / "bert")
    t5 = make_config("t5", vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    make_t5(t5).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is not a decoder-only language model"):
        Checkpoint(tmp_path / "t5")


def test_quantised_checkpoints_are_refused(tmp_path: Path) -> None:
    save_model("llama", tmp_path)
    edit_config(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ValueError, match=r"this LlamaForCausalLM is already quantised \(gptq\)"):
        Checkpoint(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    save_model("llama", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"\.bin files only.*save_pretrained"):
        Checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"has neither model.safetensors nor"):
        Checkpoint(tmp_path)


def test_directories_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere' is not a directory; check the path"):
        Checkpoint(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        Checkpoint(tmp_path)


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    save_model("llama", tmp_path)
    edit_weights(tmp_path, lambda t: {name: x.to(torch.int8) for name, x in t.items()})
    with pytest.raises(ValueError, match="stores I8 only"):
        _ = Checkpoint(tmp_path).dtype
