"""Models without their dropped branches: their files, their code as transformers runs it, what is refused."""

import json
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.dynamic_module_utils
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from paretopress.exporters.artifact.winner import Winner
from paretopress.exporters.checkpoints import nemotron_modeling as modeling
from paretopress.exporters.checkpoints.model_folder import WrittenModel, write_model
from paretopress.exporters.checkpoints.nemotron_nas import NemotronLayout, export_nemotron_nas
from paretopress.exporters.checkpoints.packed_checkpoint import open_model
from paretopress.exporters.export import export_run
from paretopress.exporters.heldout import heldout_check
from paretopress.search.jobs.measure import measure_model
from paretopress.spaces.model.checkpoint import Checkpoint
from paretopress.spaces.model.dense_model import DenseModel
from tests.architectures import core_first, make_config, random_model, random_tokens
from tests.exporters.cases import QUICKSTART, Case, finished_run, load, logits, quickstart_config

Dropped = Mapping[int, tuple[str, ...]]
BOTH = ("attention", "mlp")
read_tokenizer: Any = AutoTokenizer.from_pretrained
PATTERNS: tuple[Dropped, ...] = (
    {0: ("attention",), 2: ("mlp",)},
    {4: ("attention",), 0: ("mlp",)},
    {0: BOTH, 1: ("attention",), 3: ("attention",)},
    dict.fromkeys(range(5), ("attention",)),
)
_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "hidden_size": 32,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "intermediate_size": 48,
}
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 8},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
}


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No network, and a folder of this module's own for the code that transformers copies."""

    def refused(*_: object) -> None:
        raise OSError("these tests need no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refused)
        cache = str(tmp_path_factory.mktemp("code"))
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", cache)
        patch.setattr(sys, "path", list(sys.path))
        yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.fixture(scope="module", params=core_first(_FAMILIES, ("llama",)))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    config = make_config(request.param, **{**_SIZES, **_FAMILIES[request.param]})
    random_model(config).save_pretrained(folder / "model")
    return Case(folder / "model", folder / "levels")


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(QUICKSTART, tmp_path_factory.mktemp("databases"))


def winner_of(case: Case, assignment: Mapping[str, str]) -> Winner:
    return Winner(DenseModel(case.checkpoint, case.structure), case.database, assignment)


def export(case: Case, assignment: Mapping[str, str], output: Path, **options: Any) -> WrittenModel:
    winner = winner_of(case, assignment)
    return write_model(winner, NemotronLayout(winner), output, device="cpu", **options)


def drops(case: Case, dropped: Dropped) -> dict[str, str]:
    """Nothing but `drop`."""
    return {path: label for path, label in case.assignment(dropped).items() if label == "drop"}


def reloaded(path: Path) -> Any:
    model, info = load(path, trust_remote_code=True, output_loading_info=True)
    assert not any(info[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))
    assert type(model).__module__.startswith("transformers_modules.")
    return model


def read_config(path: Path) -> Any:
    return json.loads((path / "config.json").read_text())


def generated(model: Any, tokens_BT: Tensor, **options: Any) -> Tensor:
    found: Tensor = model.generate(
        tokens_BT, max_new_tokens=40, do_sample=False, eos_token_id=None, disable_compile=True, **options
    )
    return found


def stepwise(model: Any, tokens_BT: Tensor) -> Tensor:
    """Logits_BTV with a cache, a token at a time; positions and masks are what the model makes of the cache."""
    past, found = None, []
    with torch.inference_mode():
        for t in range(tokens_BT.shape[1]):
            output = model(tokens_BT[:, t : t + 1], past_key_values=past, use_cache=True)
            past = output.past_key_values
            found.append(output.logits)
    return torch.cat(found, 1)


@pytest.mark.parametrize("dropped", PATTERNS)
def test_the_code_computes_the_edited_model_with_and_without_a_cache(
    case: Case, dropped: Dropped, tmp_path: Path
) -> None:
    assignment = case.assignment(dropped)
    export(case, assignment, tmp_path / "out")
    model = reloaded(tmp_path / "out")
    assert torch.equal(logits(model), logits(case.edited(assignment)))
    tokens_BT = random_tokens(2)
    torch.testing.assert_close(
        stepwise(model, tokens_BT), model(tokens_BT, use_cache=False).logits, rtol=1e-4, atol=1e-4
    )
    padded_BT = torch.ones_like(tokens_BT)
    padded_BT[0, :9] = 0
    expected = generated(model, tokens_BT, attention_mask=padded_BT, use_cache=False)
    assert expected.shape == (2, 64)
    for options in ({}, {"cache_implementation": "static"}):
        assert torch.equal(generated(model, tokens_BT, attention_mask=padded_BT, **options), expected)


def test_files_lack_what_was_dropped_and_nothing_else(case: Case, tmp_path: Path) -> None:
    assignment = case.assignment({0: ("attention",), 1: BOTH, 4: ("mlp",)})
    summary = export(case, assignment, tmp_path / "out")
    assert (summary.removed, summary.zeroed) == ((1,), ())
    assert summary.absent == ("blocks.0.attention", "blocks.4.mlp")
    written, source = (load_file(path / "model.safetensors") for path in (tmp_path / "out", case.path))
    gone = ("0.self_attn.", "0.input_layernorm.", "1.", "4.mlp.", "4.post_attention_layernorm.")
    kept = {name for name in source if not name.startswith(tuple(f"model.layers.{part}" for part in gone))}
    numbers = {0: 0, 2: 1, 3: 2, 4: 3}
    for name in kept:
        head, _, rest = name.removeprefix("model.layers.").partition(".")
        new = f"model.layers.{numbers[int(head)]}.{rest}" if head.isdecimal() else name
        layer, _, leaf = name.rpartition(".")
        label = assignment.get(layer) if leaf == "weight" else None
        meant = case.database.load(layer, label, torch.device("cpu")).dense() if label else source[name]
        assert torch.equal(written.pop(new), meant)
    assert not written
    heads = {"no_op": False, "n_heads_in_group": 2}
    width = {"no_op": False, "intermediate_size": 48}
    assert read_config(tmp_path / "out")["block_configs"] == [
        {"attention": {"no_op": True, "n_heads_in_group": None}, "ffn": width},
        {"attention": heads, "ffn": width},
        {"attention": heads, "ffn": width},
        {"attention": heads, "ffn": {"no_op": True, "intermediate_size": None}},
    ]


def test_quickstart_model_keeps_its_type_exact_values_and_tokenizer(quickstart: Case, tmp_path: Path) -> None:
    assignment = quickstart.assignment({3: BOTH, 5: ("mlp",), 7: ("attention",)})
    summary = export(quickstart, assignment, tmp_path / "out", shard_bytes=1_000_000)
    model, edited = reloaded(tmp_path / "out"), quickstart.edited(assignment)
    assert model.dtype == torch.float16
    assert torch.equal(logits(model), logits(edited))
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 1
    assert summary.bytes == sum(path.stat().st_size for path in files)
    tokenizer = read_tokenizer(tmp_path / "out", trust_remote_code=True)
    assert tokenizer.get_vocab() == read_tokenizer(QUICKSTART).get_vocab()
    record = json.loads((tmp_path / "out" / "paretopress.json").read_text())
    assert (record["format"], record["removed_blocks"]) == ("nemotron-nas", [3])
    assert record["absent_branches"] == ["blocks.5.mlp", "blocks.7.attention"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "1 of 8 blocks were removed, 0 more branches are written as zeros, 2 are left out." in card
    assert "load model and tokenizer with `trust_remote_code=True`" in card


def test_no_code_runs_unless_asked_for(quickstart: Case, tmp_path: Path) -> None:
    export(quickstart, {}, tmp_path / "out")
    code = tmp_path / "out" / "nemotron_modeling.py"
    assert code.read_bytes() == Path(modeling.__file__).read_bytes()
    code.write_text("raise SystemExit('this code ran')\n")
    for opened in (load, Checkpoint):
        with pytest.raises(ValueError, match="custom code which must be executed"):
            opened(tmp_path / "out", trust_remote_code=False)
    open_model(tmp_path / "out", False).skeleton()
    with pytest.raises(SystemExit, match="this code ran"):
        load(tmp_path / "out", trust_remote_code=True)


def test_configuration_has_attributes_and_survives_saving(tmp_path: Path, quickstart: Case) -> None:
    export(quickstart, drops(quickstart, {2: ("mlp",)}), tmp_path / "out")
    model = reloaded(tmp_path / "out")
    first, dropped = model.config.block_configs[0], model.config.block_configs[2]
    assert (first.attention.no_op, first.ffn.no_op, dropped.ffn.no_op) == (False, False, True)
    assert first.ffn.intermediate_size == model.config.intermediate_size
    # vLLM would take its width from this name if there were one.
    assert not hasattr(first.ffn, "ffn_mult")
    model.save_pretrained(tmp_path / "again")
    for name in ("block_configs", "architectures", "auto_map", "model_type"):
        assert read_config(tmp_path / "again")[name] == read_config(tmp_path / "out")[name]
    assert torch.equal(logits(reloaded(tmp_path / "again")), logits(model))


def test_mlps_may_have_widths_of_their_own(case: Case, tmp_path: Path) -> None:
    export(case, {}, tmp_path / "out")
    config, path = read_config(tmp_path / "out"), tmp_path / "out" / "model.safetensors"
    tensors = load_file(path)
    plain: PreTrainedModel = load(case.path)
    for index, width in ((1, 16), (4, 40)):
        config["block_configs"][index]["ffn"]["intermediate_size"] = width
        mlp = f"model.layers.{index}.mlp"
        for name in [name for name in tensors if name.startswith((f"{mlp}.gate", f"{mlp}.up"))]:
            tensors[name] = tensors[name][:width].contiguous()
        tensors[f"{mlp}.down_proj.weight"] = tensors[f"{mlp}.down_proj.weight"][:, :width].contiguous()
        with torch.no_grad():
            plain.get_parameter(f"{mlp}.down_proj.weight")[:, width:] = 0
    save_file(tensors, path, {"format": "pt"})
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    torch.testing.assert_close(logits(reloaded(tmp_path / "out")), logits(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_is_evaluated_as_its_dense_export(quickstart: Case, tmp_path: Path) -> None:
    assignment = quickstart.assignment({0: ("attention",), 3: BOTH, 7: ("mlp",)})
    export(quickstart, assignment, tmp_path / "short")
    (tmp_path / "short" / "nemotron_modeling.py").unlink()
    quickstart.export(assignment, tmp_path / "dense")
    config = quickstart_config(length=64, heldout=128)
    short, dense = (
        measure_model(config, DenseModel(open_model(tmp_path / name, False)), "heldout")
        for name in ("short", "dense")
    )
    assert short == dense
    assert short["kl"] > 0.01
    winner = winner_of(quickstart, assignment)
    for known, fits in ((short, True), ({**short, "kl": short["kl"] + 1}, False)):
        inspected = replace(winner, inspect=heldout_check(config, known, lambda line: None))
        if fits:
            export_nemotron_nas(inspected, tmp_path / "measured", False)
            record = json.loads((tmp_path / "measured" / "paretopress.json").read_text())
            assert record["heldout_measured"] == pytest.approx(short, rel=1e-5)
        else:
            with pytest.raises(OSError, match="so nothing was exported"):
                export_nemotron_nas(inspected, tmp_path / "other", False)


def run_of(case: Case, folder: Path, units: Mapping[str, str], limit: int, **space: Any) -> Path:
    config = {"space": {"levels": ["dense"], "drop": "branches", **space}, "budgets": [{"bytes": limit}]}
    return finished_run(case, folder, units, [f"bytes {limit}"], config)


def test_a_budget_in_bytes_counts_what_is_there(quickstart: Case, tmp_path: Path) -> None:
    units = {"blocks.0.attention": "drop", "blocks.5": "drop", "blocks.7.mlp": "drop"}
    source = sum(tensor.nbytes for tensor in load_file(QUICKSTART / "model.safetensors").values())
    linears = {
        linear.path: 2 * linear.in_features * linear.out_features for linear in quickstart.structure.linears
    }
    gone = ("model.layers.0.self_attn.", "model.layers.5.", "model.layers.7.mlp.")
    rest = source - sum(size for path, size in linears.items() if path.startswith(gone))
    norms = 4 * 2 * 128
    limit = rest - norms
    run = run_of(quickstart, tmp_path / "run", units, limit, format="packed")
    lines = export_run(run, tmp_path / "out", budget=f"bytes {limit}", form="nemotron-nas")
    assert lines[0].endswith(f", {limit:,} of them tensors; the budget allows {limit:,}")
    assert lines[1:] == [
        "1 of 8 blocks removed: 5",
        "dropped branches left out: blocks.0.attention, blocks.7.mlp",
        "not for vLLM: its DeciLMForCausalLM, which reads this format, needs the attention of the first block",
        f"next: AutoModelForCausalLM.from_pretrained({str(tmp_path / 'out')!r}, trust_remote_code=True)",
    ]
    run = run_of(quickstart, tmp_path / "less", units, limit - 1, format="packed")
    with pytest.raises(
        ValueError, match=rf"hold {limit:,} bytes of tensors, above the {limit - 1:,} of the budget;"
    ):
        export_run(run, tmp_path / "less" / "out", budget=f"bytes {limit - 1}", form="nemotron-nas")
    assert not (tmp_path / "less" / "out").exists()


def test_a_budget_of_packed_levels_says_nothing_of_dense_files(quickstart: Case, tmp_path: Path) -> None:
    units = {quickstart.structure.linears[0].path: "w3g16", "blocks.7.mlp": "drop"}
    run = run_of(quickstart, tmp_path, units, 1000, format="packed", levels=["w3g16", "dense"])
    lines = export_run(run, tmp_path / "out", budget="bytes 1000", form="nemotron-nas")
    assert lines[0].endswith("bytes of dense weights in torch.float16")
    assert (
        lines[2]
        == "for vLLM: its DeciLMForCausalLM reads this format by its source code; this was not tested"
    )


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    config = make_config("gpt2", vocab_size=128, n_embd=32, n_layer=3, n_head=4, n_positions=64)
    random_model(config).save_pretrained(tmp_path / "gpt2")
    other = Case(tmp_path / "gpt2", tmp_path / "levels")
    with pytest.raises(
        ValueError,
        match=r"code for Llama, Mistral, Qwen2 and Qwen3, and this is GPT2LMHeadModel; .*--format hf",
    ):
        export(other, drops(other, {0: ("mlp",)}), tmp_path / "out")


@pytest.mark.slow
def test_single_attentions_of_mixed_types_are_not_left_out(tmp_path: Path) -> None:
    sizes = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    random_model(make_config("qwen2", **_SIZES, **sizes)).save_pretrained(tmp_path / "qwen2")
    mixed = Case(tmp_path / "qwen2", tmp_path / "levels")
    with pytest.raises(
        ValueError,
        match=r"mixes full_attention and sliding_attention, and its cache .*; export with --format hf",
    ):
        export(mixed, drops(mixed, {1: ("attention",)}), tmp_path / "out")
    # Without attention in blocks of one of the types, or with all attentions, there is nothing to mix up.
    for number, dropped in enumerate(({0: BOTH, 1: BOTH, 3: ("attention",)}, {1: ("mlp",), 2: BOTH})):
        assignment = mixed.assignment(dropped)
        export(mixed, assignment, tmp_path / str(number))
        model = reloaded(tmp_path / str(number))
        torch.testing.assert_close(logits(model), logits(mixed.edited(assignment)), rtol=1e-4, atol=1e-4)
        tokens_BT = random_tokens(2)
        assert torch.equal(generated(model, tokens_BT), generated(model, tokens_BT, use_cache=False))


class Exchanging(NemotronLayout):
    """Says that another branch than the one that was left out is absent."""

    def configure(self, *arguments: Any) -> dict[str, Any]:
        found = super().configure(*arguments)
        blocks = found["block_configs"]
        blocks[1], blocks[2] = blocks[2], blocks[1]
        return found


class Damaging(NemotronLayout):
    """Changes a norm between writing and the comparison of logits."""

    def open(self, folder: Path, trust_remote_code: bool) -> DenseModel:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors["model.norm.weight"] *= 1.01
        save_file(tensors, path, {"format": "pt"})
        return super().open(folder, trust_remote_code)


def test_what_reads_differently_is_found_and_nothing_is_left(quickstart: Case, tmp_path: Path) -> None:
    winner = winner_of(quickstart, drops(quickstart, {1: ("mlp",)}))
    with pytest.raises(ValueError, match=r"no tensor for 'model.layers.1.post_attention_layernorm.weight'"):
        write_model(winner, Exchanging(winner), tmp_path / "out")
    with pytest.raises(ValueError, match="gives other logits than the searched model"):
        write_model(winner, Damaging(winner), tmp_path / "out")
    assert not list(tmp_path.iterdir())
