"""Exported models against plain models edited by hand, against the block runner, and as folders."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from paretopress.exporters.artifact.shortening import shortened_config
from paretopress.exporters.checkpoints import model_folder
from paretopress.exporters.checkpoints.hf import export_dense
from paretopress.exporters.export import export_run
from paretopress.spaces.levels.builders import build
from paretopress.spaces.model.checkpoint import Checkpoint
from paretopress.spaces.model.dense_model import DenseModel
from paretopress.spaces.model.structure import find_structure
from paretopress.spaces.profile_file import ProfileFile, write_profile
from paretopress.spaces.storage.database import LevelDatabase
from tests.architectures import core_first, random_model, save_model
from tests.exporters.cases import LABELS, QUICKSTART, ROUNDED, Case, finished_run, load, logits, reloaded


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(QUICKSTART, tmp_path_factory.mktemp("databases"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(
        save_model("llama", tmp_path_factory.mktemp("models") / "llama"), tmp_path_factory.mktemp("databases")
    )


def save_variant(name: str, path: Path, **changes: object) -> None:
    config = AutoConfig.from_pretrained(save_model(name, path))
    config.update(changes)
    random_model(config).save_pretrained(path)


@pytest.mark.parametrize(
    "name", core_first(["gemma2", "gpt2", "gpt_neo", "gpt_neox", "opt", "phi3", "qwen2"])
)
def test_exported_model_gives_the_logits_of_the_edited_model(name: str, tmp_path: Path) -> None:
    case = Case(save_model(name, tmp_path / name), tmp_path)
    last = len(case.structure.blocks) - 1
    assignment = case.assignment({0: ("attention",), 1: ("attention", "mlp"), last: ("mlp",)})
    summary = case.export(assignment, tmp_path / "out")
    model = reloaded(tmp_path / "out")
    assert summary.removed == (1,)
    assert summary.zeroed == ("blocks.0.attention", f"blocks.{last}.mlp")
    assert len(find_structure(model).blocks) == last
    expected = logits(case.edited(assignment))
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(case.edited({})), expected, atol=1e-2)


def test_quickstart_model_keeps_its_type_and_exact_values(quickstart: Case, tmp_path: Path) -> None:
    assignment = quickstart.assignment({3: ("attention", "mlp"), 5: ("mlp",)})
    summary = quickstart.export(assignment, tmp_path / "out")
    model, edited = reloaded(tmp_path / "out"), quickstart.edited(assignment)
    assert model.dtype == torch.float16
    assert model.config.num_hidden_layers == 7
    assert torch.equal(logits(model), logits(edited))
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert summary.bytes == sum(path.stat().st_size for path in files)
    assert all(
        path.name in {p.name for p in (tmp_path / "out").iterdir()} for path in QUICKSTART.glob("tokenizer*")
    )


def test_tied_embedding_takes_its_level(quickstart: Case, tmp_path: Path) -> None:
    assignment = {quickstart.structure.ends.embedding.path: "w4g16a"}
    quickstart.export(assignment, tmp_path / "out")
    assert torch.equal(logits(reloaded(tmp_path / "out")), logits(quickstart.edited(assignment)))


def test_nothing_assigned_copies_every_tensor(quickstart: Case, tmp_path: Path) -> None:
    export_dense(DenseModel(quickstart.checkpoint, quickstart.structure), None, {}, tmp_path / "out")
    source, copy = (
        load_file(QUICKSTART / "model.safetensors"),
        load_file(tmp_path / "out" / "model.safetensors"),
    )
    assert source.keys() == copy.keys()
    assert all(torch.equal(source[name], copy[name]) for name in source)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads(
        (QUICKSTART / "config.json").read_text()
    )


def test_shards_hold_everything_once_and_load(small: Case, tmp_path: Path) -> None:
    assignment = small.assignment({0: ("attention", "mlp")})
    small.export(assignment, tmp_path / "one")
    small.export(assignment, tmp_path / "many", shard_bytes=20_000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    whole = load_file(tmp_path / "one" / "model.safetensors")
    assert len(shards) > 2
    assert sorted(set(index["weight_map"].values())) == shards
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in whole.values())
    for name, shard in index["weight_map"].items():
        with safe_open(tmp_path / "many" / shard, framework="pt") as file:
            assert torch.equal(file.get_tensor(name), whole[name])
    assert torch.equal(logits(reloaded(tmp_path / "many")), logits(reloaded(tmp_path / "one")))


def test_names_without_the_prefix_are_kept(tmp_path: Path) -> None:
    path = save_model("gpt2", tmp_path / "gpt2")
    stored = {
        name.removeprefix("transformer."): t for name, t in load_file(path / "model.safetensors").items()
    }
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool) for i in range(3)}
    save_file(stored | masks, path / "model.safetensors", {"format": "pt"})
    case = Case(path, tmp_path)
    assignment = case.assignment({0: ("attention", "mlp")})
    case.export(assignment, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    kept = {name for name in stored | masks if not name.startswith("h.2.")}
    assert written.keys() == kept
    assert torch.equal(written["h.0.ln_1.weight"], stored["h.1.ln_1.weight"])
    model = load(tmp_path / "out")
    torch.testing.assert_close(logits(model), logits(case.edited(assignment)), rtol=1e-4, atol=1e-4)


def test_blocks_with_norms_on_the_residual_stream_stay(tmp_path: Path) -> None:
    save_variant("opt", tmp_path / "opt", do_layer_norm_before=False)
    case = Case(tmp_path / "opt", tmp_path)
    assignment = case.assignment({1: ("attention", "mlp")})
    summary = case.export(assignment, tmp_path / "out")
    assert summary.removed == ()
    assert summary.zeroed == ("blocks.1.attention", "blocks.1.mlp")
    torch.testing.assert_close(
        logits(reloaded(tmp_path / "out")), logits(case.edited(assignment)), rtol=1e-4, atol=1e-4
    )


def test_block_that_depends_on_its_number_is_refused(tmp_path: Path) -> None:
    save_variant("gpt2", tmp_path / "gpt2", scale_attn_by_inverse_layer_idx=True)
    case = Case(tmp_path / "gpt2", tmp_path)
    with pytest.raises(
        ValueError, match=r"written GPT2LMHeadModel gives other logits .* drop single branches"
    ):
        case.export(case.assignment({0: ("attention", "mlp")}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lists_with_an_entry_per_block_are_sliced(tmp_path: Path) -> None:
    neo = Checkpoint(save_model("gpt_neo", tmp_path / "neo"))
    short = shortened_config(neo, 4, [0, 2, 3])
    assert short["num_layers"] == 3
    assert short["attention_types"] == [[["global", "global", "local"], 1]]
    gemma = Checkpoint(save_model("gemma2", tmp_path / "gemma"))
    short = shortened_config(gemma, 4, [1, 2])
    assert short["num_hidden_layers"] == 2
    assert short["layer_types"] == ["full_attention", "sliding_attention"]
    assert short["architectures"] == ["Gemma2ForCausalLM"]
    gpt2 = Checkpoint(save_model("gpt2", tmp_path / "gpt2"))
    assert shortened_config(gpt2, 3, [2])["n_layer"] == 1


def test_record_and_card_say_what_was_done(quickstart: Case, tmp_path: Path) -> None:
    assignment = quickstart.assignment({3: ("attention", "mlp"), 5: ("mlp",)})
    profile = ProfileFile(
        {"blocks.3": "drop"},
        model="a|b`c",
        budget="bits 3.25",
        method="dp",
        costs={"bits": 7},
        heldout={"kl": 0.125},
    )
    summary = quickstart.export(assignment, tmp_path / "out", profile=profile)
    record = json.loads((tmp_path / "out" / "paretopress.json").read_text())
    assert record["profile"] == profile.record()
    assert record["layers"] == assignment
    assert record["removed_blocks"] == [3]
    assert record["zeroed_branches"] == ["blocks.5.mlp"]
    assert record["bytes"] == summary.bytes
    assert record["fingerprints"]["model"] == quickstart.checkpoint.fingerprint
    assert record["versions"]["torch"] == torch.__version__
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Made from a/b'c by `dp` for the budget `bits 3.25`." in card
    assert "| held-out kl | 0.125 |" in card
    assert "1 of 8 blocks were removed, 1 more branches are written as zeros." in card


def test_a_card_names_a_local_model_by_its_folder(small: Case, tmp_path: Path) -> None:
    path = small.checkpoint.path
    small.export({}, tmp_path / "out", profile=ProfileFile({}, model=str(path)))
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Made from {path.name}." in card
    assert str(path.parent) not in card
    assert "removed" not in card


def test_output_that_holds_something_is_left_alone(small: Case, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="holds other files; choose a new or empty folder"):
            small.export({}, other, overwrite=overwrite)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file; choose a folder"):
        small.export({}, tmp_path / "file")
    with pytest.raises(
        FileExistsError, match="is the model, .*, which the export reads; choose another folder"
    ):
        small.export({}, small.path, overwrite=True)


def test_earlier_export_is_replaced_only_when_asked(small: Case, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    small.export({}, output)
    with pytest.raises(FileExistsError, match="holds an export already"):
        small.export({}, output)
    small.export(small.assignment({0: ("attention", "mlp")}), output, overwrite=True)
    assert json.loads((output / "config.json").read_text())["num_hidden_layers"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_failure_leaves_the_earlier_export_and_nothing_else(
    small: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    small.export({}, output)
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    with pytest.raises(ValueError, match="level 'w7' of"):
        small.export({small.structure.linears[-1].path: "w7"}, output, overwrite=True)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model_folder, "compare_logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small.export({}, output, overwrite=True)
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_assignments_that_fit_no_model_are_refused(small: Case, tmp_path: Path) -> None:
    first = small.structure.linears[0].path
    cases = {
        r"layer 'model.layers.0.self_attn.q_prj' is not in the model; did you mean 'model.layers.0.self_attn.q_proj'": {
            "model.layers.0.self_attn.q_prj": "w3g16"
        },
        r"blocks.0.attention is dropped in part; drop all its layers": {first: "drop"},
        r"model.embed_tokens cannot be dropped; only branches": {small.structure.ends.embedding.path: "drop"},
        r"every block is dropped; keep at least one": {x.path: "drop" for x in small.structure.linears},
    }
    for message, assignment in cases.items():
        with pytest.raises(ValueError, match=message):
            small.export(assignment, tmp_path / "out")
    with pytest.raises(ValueError, match="takes 'w3g16', but there is no level database"):
        export_dense(DenseModel(small.checkpoint, small.structure), None, {first: "w3g16"}, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_levels_of_another_model_are_refused(small: Case, tmp_path: Path) -> None:
    first = small.structure.linears[0].path
    database = LevelDatabase(tmp_path / "levels", {"model": "other"})
    database.write("all", {first: build(torch.randn(4, 16), None, ["w3g16"], config=ROUNDED)}, {first: {}})
    with pytest.raises(ValueError, match=r"has shape \(4, 16\), but the layer has \(32, 32\)"):
        export_dense(
            DenseModel(small.checkpoint, small.structure), database, {first: "w3g16"}, tmp_path / "out"
        )


def run_folder(case: Case, tmp_path: Path) -> Path:
    linears = case.structure.linears
    units = {linear.path: LABELS[0] for linear in linears[:3]} | {"blocks.7": "drop", "blocks.6.mlp": "drop"}
    return finished_run(case, tmp_path, units, ("bits 3.25", "bits 4"))


@pytest.mark.parametrize("budget", ["bits 3.25", "3.25"])
def test_point_of_a_run_is_exported(quickstart: Case, tmp_path: Path, budget: str) -> None:
    lines = export_run(run_folder(quickstart, tmp_path), tmp_path / "out", budget=budget)
    assert lines[1:3] == ["1 of 8 blocks removed: 7", "dropped branches written as zeros: blocks.6.mlp"]
    linears = quickstart.structure.linears
    dropped = [
        linear.path
        for linear in linears
        if linear.path.startswith(("model.layers.7.", "model.layers.6.mlp."))
    ]
    assignment = dict.fromkeys(dropped, "drop") | {linear.path: LABELS[0] for linear in linears[:3]}
    assert torch.equal(logits(reloaded(tmp_path / "out")), logits(quickstart.edited(assignment)))
    record = json.loads((tmp_path / "out" / "paretopress.json").read_text())
    assert record["profile"]["heldout"] == {"kl": 0.5, "perplexity": 9.5}
    assert record["profile"]["budget"] == "bits 3.25"


def test_profile_file_is_exported_with_the_levels_of_a_run(quickstart: Case, tmp_path: Path) -> None:
    run = run_folder(quickstart, tmp_path)
    first = quickstart.structure.linears[0].path
    write_profile(
        tmp_path / "p.yaml", ProfileFile({first: "s50"}, fingerprint=quickstart.checkpoint.fingerprint)
    )
    export_run(run, tmp_path / "out", profile=tmp_path / "p.yaml")
    assert torch.equal(logits(reloaded(tmp_path / "out")), logits(quickstart.edited({first: "s50"})))
    write_profile(tmp_path / "p.yaml", ProfileFile({first: "s50"}, fingerprint="another"))
    with pytest.raises(ValueError, match="the profile is of another model"):
        export_run(run, tmp_path / "other", profile=tmp_path / "p.yaml")


def test_runs_that_cannot_be_exported_say_why(quickstart: Case, tmp_path: Path) -> None:
    run = run_folder(quickstart, tmp_path)
    with pytest.raises(ValueError, match=r"give a budget of the run \(bits 3.25, bits 4\) or a profile file"):
        export_run(run, tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"budget 'bits 3' is not one of this run's; did you mean 'bits 4'|3.25'"
    ):
        export_run(run, tmp_path / "out", budget="bits 3")
    (tmp_path / "databases").rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="build the run's levels again"):
        export_run(run, tmp_path / "out", budget="4")
    with pytest.raises(FileNotFoundError, match="has no front yet"):
        export_run(tmp_path / "nothing", tmp_path / "out", budget="4")
