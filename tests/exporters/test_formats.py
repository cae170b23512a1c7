"""Formats through the public function and the command: fused layers, budgets in bytes, recipes, unknown names."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from paretopress.cli import main
from paretopress.exporters.artifact.fusing import mixed_groups
from paretopress.exporters.artifact.limits import byte_limit
from paretopress.exporters.artifact.winner import Winners
from paretopress.exporters.export import export_run
from paretopress.exporters.formats import FORMATS
from paretopress.search.folder.front import Refit
from paretopress.search.folder.runfolder import RunFolder
from paretopress.search.jobs.refitted import refit_folder
from paretopress.spaces.levels.builders import build
from paretopress.spaces.levels.labels import parse_label
from paretopress.spaces.profile_file import ProfileFile, write_profile
from paretopress.spaces.storage.database import LevelDatabase
from tests.exporters.cases import ROUNDED, Case, finished_run, half_model, load, logits, reloaded

LEVELS = ("w2g32", "w3g32", "w4g32", "w4g128", "2:4+w4g32", "w4g32a", "s50", "dense")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("case")
    path = half_model("llama", folder / "model", torch.bfloat16, num_hidden_layers=4)
    return Case(path, folder / "levels", [label for label in LEVELS if label != "dense"])


def run_of(
    case: Case, folder: Path, labels: Mapping[str, str], budget: str = "bits 4.5", **space: Any
) -> Path:
    """A run with `w3g32` everywhere but where the end of a layer's path is in `labels`."""
    kind, value = budget.split()
    paths = [linear.path for linear in case.structure.linears]
    units = {
        path: next((label for end, label in labels.items() if path.endswith(end)), "w3g32") for path in paths
    }
    config = {"space": {"levels": list(LEVELS), **space}, "budgets": [{kind: float(value)}]}
    if kind == "bytes":
        config["budgets"] = [{kind: int(value)}]
    return finished_run(case, folder, units, [budget], config)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["paretopress", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_fused_layers_that_differ_are_refused_by_default(case: Case, tmp_path: Path) -> None:
    run = run_of(case, tmp_path, {"q_proj": "w4g32", "3.mlp.up_proj": "dense"})
    message = (
        r"model.layers.0.self_attn.q_proj w4g32, model.layers.0.self_attn.k_proj w3g32, .*v_proj w3g32 and "
        r"4 more groups differ in scheme, but vLLM fuses such layers .*give --fused raise"
    )
    for form in ("compressed-tensors", "llm-compressor"):
        with pytest.raises(ValueError, match=message):
            export_run(run, tmp_path / "out", budget="4.5", form=form)
    export_run(run, tmp_path / "dense", budget="4.5")
    with pytest.raises(ValueError, match="--fused is of no use to the format 'hf'"):
        export_run(run, tmp_path / "other", budget="4.5", fused="raise")
    assert not (tmp_path / "out").exists()


def test_kept_as_they_are_and_said_so(case: Case, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    run = run_of(case, tmp_path, {"0.self_attn.q_proj": "w4g32"})
    lines = export_run(run, tmp_path / "out", budget="4.5", form="compressed-tensors", fused="keep")
    assert (
        "not for vLLM: 1 groups of layers that vLLM fuses differ in scheme; the first group is model.layers.0"
        in "\n".join(lines)
    )
    export_run(run, tmp_path / "dense", budget="4.5")
    assert torch.equal(logits(reloaded(tmp_path / "out")), logits(load(tmp_path / "dense")))


def test_raised_to_the_widest_of_their_group(case: Case, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    labels = {
        "0.self_attn.q_proj": "w4g32",
        "0.self_attn.k_proj": "2:4+w4g32",
        "1.mlp.gate_proj": "s50",
        "2.mlp.up_proj": "w2g32",
        "3.mlp.down_proj": "w4g128",
    }
    run = run_of(case, tmp_path, labels, "bits 5")
    lines = export_run(run, tmp_path / "out", budget="5", form="compressed-tensors", fused="raise")
    assert any(line.startswith("raised 3 layers to the widest scheme of 3 fused groups;") for line in lines)
    assert not any(line.startswith("not for vLLM") for line in lines)
    record = json.loads((tmp_path / "out" / "paretopress.json").read_text())
    layers = record["layers"]
    prefix = "model.layers."
    assert [layers[f"{prefix}0.self_attn.{x}_proj"] for x in "qkv"] == ["w4g32", "2:4+w4g32", "w4g32"]
    # s50 is stored dense, and so must the layer beside it be; dense layers are not listed.
    assert layers[f"{prefix}1.mlp.gate_proj"] == "s50"
    assert f"{prefix}1.mlp.up_proj" not in layers
    assert layers[f"{prefix}2.mlp.up_proj"] == "w3g32"
    assert layers[f"{prefix}3.mlp.down_proj"] == "w4g128"
    assert not mixed_groups(case.structure, layers)
    assert "heldout" not in record["profile"]
    assert record["profile"]["units"] == layers | {f"{prefix}1.mlp.up_proj": "dense"}
    model = reloaded(tmp_path / "out")
    assert torch.equal(logits(model), logits(case.edited(layers)))


def test_refitted_levels_are_packed_but_do_not_fit_a_raised_profile(case: Case, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    run = run_of(case, tmp_path, {"0.self_attn.q_proj": "w4g32"})
    refit = LevelDatabase(refit_folder(run, "bits 4.5"), {"model": "refitted"})
    linears = {linear.path: linear for linear in case.structure.linears}
    labels = {path: "w4g32" if path.endswith("0.self_attn.q_proj") else "w3g32" for path in linears}
    levels = {
        path: build(1.5 * case.checkpoint.tensor(f"{path}.weight"), None, [label], config=ROUNDED)
        for path, label in labels.items()
    }
    refit.write("all", levels, {path: {} for path in levels})
    folder = RunFolder(run)
    front = folder.read_front()
    assert front is not None
    kept = Refit(kept=True, database=refit.fingerprint, heldout_kl=0.25, heldout_perplexity=8.5)
    with folder:
        folder.write_front(front.with_points([front.points[0].model_copy(update={"refit": kept})]))
    form = "compressed-tensors"
    lines = export_run(run, tmp_path / "kept", budget="4.5", form=form, fused="keep")
    assert "refitted weights; held-out kl 0.25, held-out perplexity 8.5" in lines
    model = reloaded(tmp_path / "kept")
    logits(model)
    for path, label in labels.items():
        assert torch.equal(model.get_parameter(f"{path}.weight"), levels[path][label].dense())
    lines = export_run(run, tmp_path / "raised", budget="4.5", form=form, fused="raise")
    assert (
        "the new profile takes the run's levels without the refit, which was made for the profile before"
        in lines
    )
    layers = json.loads((tmp_path / "raised" / "paretopress.json").read_text())["layers"]
    assert torch.equal(logits(reloaded(tmp_path / "raised")), logits(case.edited(layers)))


def test_raising_stays_within_the_budget_and_the_levels_there_are(case: Case, tmp_path: Path) -> None:
    labels = {"q_proj": "w4g32"}
    cost = "raising 4 fused groups to their widest scheme brings bits to 3."
    run = run_of(case, tmp_path / "tight", labels, "bits 3.55")
    with pytest.raises(
        ValueError, match=rf"{cost}\d+, above the 3.55 of the budget 'bits 3.55'; search with"
    ):
        export_run(run, tmp_path / "out", budget="3.55", form="compressed-tensors", fused="raise")
    export_run(
        run_of(case, tmp_path / "wide", labels, "bits 4"),
        tmp_path / "out",
        budget="4",
        form="llm-compressor",
        fused="raise",
    )
    pinned = run_of(case, tmp_path / "few", labels, units={"pin": {"0.self_attn.k_proj": "w3g32"}})
    with pytest.raises(
        ValueError,
        match=r"k_proj cannot be raised to the scheme of 'w4g32', which none of its levels has \(w3g32\)",
    ):
        export_run(pinned, tmp_path / "other", budget="4.5", form="compressed-tensors", fused="raise")
    assert not (tmp_path / "other").exists()


def test_raising_never_takes_weights_away(case: Case, tmp_path: Path) -> None:
    """Zeros have no grid either, but are no level that a quantised layer is raised to."""
    levels = [label for label in LEVELS if label != "dense"]
    run = run_of(case, tmp_path, {"gate_proj": "s50", "up_proj": "w4g32"}, "bits 9", levels=levels)
    with pytest.raises(ValueError, match=r"up_proj cannot be raised to the scheme of 's50'"):
        export_run(run, tmp_path / "out", budget="9", form="compressed-tensors", fused="raise")


def test_a_profile_file_has_no_budget_to_exceed(case: Case, tmp_path: Path) -> None:
    run = run_of(case, tmp_path, {}, "bits 3.6")
    units = {linear.path: "w3g32" for linear in case.structure.linears}
    units["model.layers.0.self_attn.q_proj"] = "w4g32"
    write_profile(tmp_path / "p.yaml", ProfileFile(units))
    export_run(run, tmp_path / "out", profile=tmp_path / "p.yaml", form="llm-compressor", fused="raise")
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert len(groups_of(recipe)["w4g32"]["targets"]) == 3


def test_a_budget_in_bytes_is_never_exceeded_by_the_files(case: Case, tmp_path: Path) -> None:
    form = "compressed-tensors"
    probe = run_of(case, tmp_path / "probe", {}, format=form)
    export_run(probe, tmp_path / "first", budget="4.5", form=form)
    size = json.loads((tmp_path / "first" / "paretopress.json").read_text())["tensor_bytes"]
    exact = run_of(case, tmp_path / "exact", {}, f"bytes {size}", format=form)
    lines = export_run(exact, tmp_path / "second", budget=str(size), form=form)
    assert f"{size:,} of them tensors, as the size rules say; the budget allows {size:,}" in lines[0]
    over = run_of(case, tmp_path / "over", {}, f"bytes {size - 1}", format=form)
    with pytest.raises(
        ValueError, match=rf"{size:,} bytes of tensors, above the {size - 1:,} of the budget; export"
    ):
        export_run(over, tmp_path / "third", budget=str(size - 1), form=form)
    assert not (tmp_path / "third").exists()
    other = run_of(case, tmp_path / "other", {}, f"bytes {size - 1}", format="packed")
    assert byte_limit(Winners(other).choose(str(size - 1), None), form) is None
    assert byte_limit(Winners(over).choose(str(size - 1), None), form) == size - 1


def test_zeros_of_dropped_branches_count_as_bytes(case: Case, tmp_path: Path) -> None:
    form = "compressed-tensors"
    units = {linear.path: "w3g32" for linear in case.structure.linears if ".1.mlp." not in linear.path}
    config = {
        "space": {"levels": list(LEVELS), "drop": "branches", "format": form},
        "budgets": [{"bytes": 400_000}],
    }
    run = finished_run(case, tmp_path, units | {"blocks.1.mlp": "drop"}, ["bytes 400000"], config)
    message = r"above the 400,000 of the budget: blocks.1.mlp are dropped but written as zeros; .* space.drop=blocks"
    with pytest.raises(ValueError, match=message):
        export_run(run, tmp_path / "out", budget="400000", form=form)


def groups_of(recipe: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = recipe["quant_stage"]["quant_modifiers"]["GPTQModifier"]["config_groups"]
    return found


def test_a_recipe_says_the_scheme_of_every_layer(case: Case, tmp_path: Path) -> None:
    labels = {"self_attn.o_proj": "w4g32a", "mlp.down_proj": "dense"}
    run = run_of(case, tmp_path, labels)
    lines = export_run(run, tmp_path / "out", budget="4.5", form="llm-compressor")
    assert lines[0] == f"{tmp_path / 'out' / 'recipe.yaml'}: a recipe with GPTQModifier for 24 layers"
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    groups = groups_of(recipe)
    paths = [linear.path for linear in case.structure.linears]
    assert set(groups) == {"w3g32", "w4g32a"}
    assert groups["w4g32a"]["targets"] == [path for path in paths if path.endswith("o_proj")]
    assert groups["w4g32a"]["weights"] == {
        "num_bits": 4,
        "type": "int",
        "symmetric": False,
        "strategy": "group",
        "group_size": 32,
    }
    ignore = recipe["quant_stage"]["quant_modifiers"]["GPTQModifier"]["ignore"]
    assert ignore == ["lm_head", *(path for path in paths if path.endswith("down_proj"))]
    quantization = pytest.importorskip("compressed_tensors.quantization")
    parsed = quantization.QuantizationConfig.model_validate({"config_groups": groups, "ignore": ignore})
    assert parsed.config_groups["w3g32"].weights.num_bits == 3
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "recipe.yaml",
        "paretopress.json",
        "README.md",
    }


def test_recipes_that_would_say_something_else_are_refused(case: Case, tmp_path: Path) -> None:
    for name, label in (("sparse", "s50"), ("both", "2:4+w4g32")):
        run = run_of(case, tmp_path / name, {"o_proj": label})
        with pytest.raises(
            ValueError, match=r"o_proj takes '.*', but recipes of llm-compressor hold only bits"
        ):
            export_run(run, tmp_path / "out", budget="4.5", form="llm-compressor")


def test_unknown_names_are_answered_with_the_nearest(case: Case, tmp_path: Path) -> None:
    run = run_of(case, tmp_path, {})
    known = ", ".join(sorted(FORMATS))
    message = f"format 'compresed-tensors' is unknown; did you mean 'compressed-tensors'? known: {known}"
    with pytest.raises(ValueError, match=re.escape(message)):
        export_run(run, tmp_path / "out", budget="4.5", form="compresed-tensors")
    with pytest.raises(ValueError, match="--fused 'rise' is unknown; did you mean 'raise'"):
        export_run(run, tmp_path / "out", budget="4.5", form="compressed-tensors", fused="rise")


def test_the_command_writes_what_transformers_loads(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("compressed_tensors")
    run = run_of(case, tmp_path, {"o_proj": "2:4+w4g32"})
    output = tmp_path / "model"
    options = ("--budget", "4.5", "--format", "compressed-tensors", "--output", output, "--no-measure")
    assert command(monkeypatch, "export", run, *options) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == f"next: AutoModelForCausalLM.from_pretrained({str(output)!r})"
    assert "vLLM runs layers of 3 bits only with its Humming kernels; 4 and 8 bits have more kernels" in out
    assert "the zeros in 4 layers are kept, but they make nothing smaller or faster" in "\n".join(out)
    layers = json.loads((output / "paretopress.json").read_text())["layers"]
    assert all(parse_label(label).grid for label in layers.values())
    assert torch.equal(logits(reloaded(output)), logits(case.edited(layers)))


def test_help_names_every_format(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, "export", "--help") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert all(f"{name}: {form.writes}" in words for name, form in FORMATS.items())
    assert all(callable(form.write) for form in FORMATS.values())
