"""Recipes for llama-quantize: what llama.cpp makes of their very arguments, and what is refused."""

import ctypes
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader

from paretopress.exporters.artifact.winner import Winner
from paretopress.exporters.export import export_run
from paretopress.exporters.gguf.gguf import export_gguf
from paretopress.exporters.gguf.llama_cpp import FILE, opened
from paretopress.exporters.recipes.llama_quantize import export_llama_quantize
from paretopress.spaces.model.checkpoint import Checkpoint
from paretopress.spaces.model.dense_model import DenseModel
from paretopress.spaces.model.structure import find_structure
from tests.architectures import save_model
from tests.exporters.cases import QUICKSTART, Case, finished_run, half_model

FITTING = ("q4_0", "q5_1", "q8_0", "iq4_nl", "q4_1", "q5_0")
"""Types of blocks of 32, which rows of 128 and 384 are made of."""
SEPARATE = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
FUSED = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
FAMILIES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"), SEPARATE),
    **dict.fromkeys(("phi3", "gpt2", "gpt_neox"), FUSED),
}
"""Names that llama.cpp's converter gives to the linear layers of a block."""
BOTH = ("attention", "mlp")


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Other levels than it is given: a recipe needs none, and these take no llama.cpp to make."""
    case = Case(QUICKSTART, tmp_path_factory.mktemp("levels"), ("s50",))
    case.labels = FITTING
    return case


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Case:
    pytest.importorskip("llama_cpp")
    return Case(QUICKSTART, tmp_path_factory.mktemp("levels"), FITTING)


@pytest.fixture(scope="module")
def dense(searched: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in 16 bits, as llama.cpp's converter would write it."""
    output = tmp_path_factory.mktemp("dense") / "out"
    export_gguf(
        Winner(DenseModel(searched.checkpoint, searched.structure), None, {}), output, overwrite=False
    )
    return output / FILE


def mixed(case: Case, dropped: Mapping[int, tuple[str, ...]]) -> dict[str, str]:
    """Types in turn, a dense layer after them, and the branches of `dropped`."""
    return case.assignment(dropped) | {case.structure.ends.embedding.path: "q5_0"}


def export(case: Case, assignment: Mapping[str, str], output: Path, **known: Any) -> list[str]:
    winner = Winner(DenseModel(case.checkpoint, case.structure), case.database, assignment, **known)
    return export_llama_quantize(winner, output, overwrite=False)


def arguments(recipe: Path, *given: str) -> list[str]:
    """What the script calls its program with."""
    program = recipe.parent / "program"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["sh", recipe / "quantize.sh", *given],
        env={**os.environ, "LLAMA_QUANTIZE": str(program)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def run_llama_cpp(call: list[str]) -> None:
    """llama.cpp's quantiser with arguments read as the program llama-quantize reads them."""
    llama_cpp: Any = pytest.importorskip("llama_cpp")
    numbers = {kind.name.lower(): kind.value for kind in GGMLQuantizationType}
    params = llama_cpp.llama_model_quantize_default_params()
    patterns: list[tuple[bytes, int]] = []
    *options, source, target, file_type = call
    assert file_type == "Q8_0"
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    params.nthread = 1
    for name, value in zip(options[::2], options[1::2], strict=True):
        if name == "--tensor-type-file":
            for word in Path(value).read_text().split():
                pattern, _, kind = word.partition("=")
                patterns.append((pattern.lower().encode(), numbers[kind.lower()]))
        elif name == "--prune-layers":
            pruned = sorted(map(int, value.split(",")))
            params.prune_layers = (ctypes.c_int32 * (len(pruned) + 1))(*pruned, -1)
        else:
            field = {
                "--token-embedding-type": "token_embedding_type",
                "--output-tensor-type": "output_tensor_type",
            }
            setattr(params, field[name], numbers[value.lower()])
    override = llama_cpp.llama_model_tensor_override
    params.tt_overrides = (override * (len(patterns) + 1))(
        *(override(*pair) for pair in patterns), override()
    )
    assert llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)) == 0


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """Name to type and bytes."""
    return {x.name: (x.tensor_type.name, x.data.tobytes()) for x in GGUFReader(path).tensors}


@pytest.mark.slow
@pytest.mark.parametrize("removed", [(), (0, 3, 7)])
def test_llama_cpp_makes_of_a_recipe_what_was_searched(
    removed: tuple[int, ...], searched: Case, dense: Path, tmp_path: Path
) -> None:
    """These levels had no importance matrix, so there is nothing in which the two may differ."""
    assignment = mixed(searched, dict.fromkeys(removed, BOTH))
    winner = Winner(DenseModel(searched.checkpoint, searched.structure), searched.database, assignment)
    export_gguf(winner, tmp_path / "searched", overwrite=False)
    export_llama_quantize(winner, tmp_path / "the recipe", overwrite=False)
    target = tmp_path / "target.gguf"
    run_llama_cpp(arguments(tmp_path / "the recipe", str(dense), str(target)))
    found = tensors(target)
    assert found == tensors(tmp_path / "searched" / FILE)
    assert {kind for kind, _ in found.values()} == {"F32", "F16", *(label.upper() for label in FITTING)}
    with opened(target, 8) as model:
        assert model.logits([1, 2, 3]).isfinite().all()


def test_options_of_the_user_come_first(quickstart: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    lines = export(quickstart, mixed(quickstart, {3: BOTH}), out)
    call = arguments(out, "in.gguf", "to here.gguf", "--imatrix", "my own.gguf")
    assert call == [
        *("--imatrix", "my own.gguf"),
        *("--tensor-type-file", str(out / "tensor-types.txt")),
        *("--token-embedding-type", "q5_0"),
        *("--output-tensor-type", "q5_0"),
        *("--prune-layers", "3"),
        *("in.gguf", "to here.gguf", "Q8_0"),
    ]
    assert lines[-1] == f"next: sh {out / 'quantize.sh'} MODEL.gguf OUTPUT.gguf --imatrix IMATRIX.gguf"
    failed = subprocess.run(["sh", out / "quantize.sh"], capture_output=True, text=True, check=False)
    assert failed.returncode != 0
    assert "is the GGUF file to quantise" in failed.stderr


def test_the_folder_says_what_it_is(quickstart: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assignment = mixed(quickstart, {3: BOTH})
    lines = export(quickstart, assignment, out, refitted=True)
    assert lines[0] == (
        f"{out / 'quantize.sh'}: llama-quantize's arguments for 49 layers, embeddings and head, 1 blocks left out"
    )
    assert "make an importance matrix of your own with llama-imatrix" in lines[1]
    assert lines[2] == "the recipe does not hold the weights that the refit changed"
    assert {path.name for path in out.iterdir()} == {
        "quantize.sh",
        "tensor-types.txt",
        "paretopress.json",
        "README.md",
    }
    record = json.loads((out / "paretopress.json").read_text())
    assert record["format"] == "llama-quantize"
    assert record["layers"] == assignment
    assert record["removed_blocks"] == [3]
    card = (out / "README.md").read_text()
    assert "`sh quantize.sh MODEL.gguf OUTPUT.gguf --imatrix FILE` runs llama-quantize" in card
    assert "1 of 8 blocks were removed" in card


def test_a_point_of_a_front(quickstart: Case, tmp_path: Path) -> None:
    units = {linear.path: "q4_0" for linear in quickstart.structure.linears}
    run = finished_run(quickstart, tmp_path, units, ["bits 4.5"])
    export_run(run, tmp_path / "out", budget="4.5", form="llama-quantize")
    types = (tmp_path / "out" / "tensor-types.txt").read_text().splitlines()
    assert types[:2] == [r"^blk\.0\.attn_q\.weight$=q4_0", r"^blk\.0\.attn_k\.weight$=q4_0"]
    assert len(types) == len(set(types)) == 56
    assert (
        "--token-embedding-type f16 --output-tensor-type f16"
        in (tmp_path / "out" / "quantize.sh").read_text()
    )
    with pytest.raises(ValueError, match="--fused is of no use to the format 'llama-quantize'"):
        export_run(run, tmp_path / "other", budget="4.5", form="llama-quantize", fused="keep")


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_of_llama_cpp(family: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(save_model(family, tmp_path / "model"))
    structure = find_structure(checkpoint.skeleton())
    export_llama_quantize(
        Winner(DenseModel(checkpoint, structure), None, {}), tmp_path / "out", overwrite=False
    )
    types = (tmp_path / "out" / "tensor-types.txt").read_text().split()
    assert set(types) == {
        rf"^blk\.{i}\.{name}\.weight$=f32" for i in range(len(structure.blocks)) for name in FAMILIES[family]
    }


def test_what_a_recipe_cannot_say_is_refused(quickstart: Case, tmp_path: Path) -> None:
    first = quickstart.structure.linears[0].path
    for label in ("w4g128", "s60", "2:4+w4g128"):
        with pytest.raises(
            ValueError,
            match=r"layers.0.self_attn.q_proj takes '.*', which is no type of llama.cpp; search over",
        ):
            export(quickstart, {first: label}, tmp_path / "out")
    with pytest.raises(
        ValueError,
        match=r"takes 'q4_k', which needs a multiple of 256 inputs, but has 128, .* such as q4_0",
    ):
        export(quickstart, {first: "q4_k"}, tmp_path / "out")
    with pytest.raises(
        ValueError,
        match=r"blocks.2.mlp is dropped but its block is kept, and llama-quantize removes only whole blocks; search with",
    ):
        export(quickstart, mixed(quickstart, {2: ("mlp",)}), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_models_that_llama_cpp_has_otherwise_are_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(save_model("opt", tmp_path / "opt"))
    winner = Winner(DenseModel(checkpoint), None, {})
    with pytest.raises(
        ValueError, match="recipes for models of type 'opt' are not written; .*known: gemma, "
    ):
        export_llama_quantize(winner, tmp_path / "out", overwrite=False)
    checkpoint = Checkpoint(save_model("gemma3_text", tmp_path / "gemma"))
    structure = find_structure(checkpoint.skeleton())
    dropped = {linear.path: "drop" for linear in structure.blocks[1].linears}
    with pytest.raises(
        ValueError,
        match="blocks 1 are dropped, but llama.cpp derives the kind of attention of a block from its number",
    ):
        export_llama_quantize(
            Winner(DenseModel(checkpoint, structure), None, dropped), tmp_path / "out", overwrite=False
        )
    last = {linear.path: "drop" for linear in structure.blocks[3].linears}
    export_llama_quantize(
        Winner(DenseModel(checkpoint, structure), None, last), tmp_path / "out", overwrite=False
    )
    assert "--prune-layers 3 " in (tmp_path / "out" / "quantize.sh").read_text()


def test_types_that_need_an_importance_matrix_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    case = Case(half_model("llama", folder, torch.bfloat16, hidden_size=256), tmp_path / "levels", ("s50",))
    first, second = (linear.path for linear in case.structure.linears[:2])
    winner = Winner(
        DenseModel(case.checkpoint, case.structure), case.database, {first: "iq3_xxs", second: "iq2_xs"}
    )
    lines = export_llama_quantize(winner, tmp_path / "out", overwrite=False)
    assert "llama-quantize writes iq2_xs, iq3_xxs only with --imatrix" in lines
