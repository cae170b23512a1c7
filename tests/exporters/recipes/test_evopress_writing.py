"""Winners as EvoPress's files: written by the command, imported again, the same profile."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paretopress.exporters.artifact.winner import Winner
from paretopress.exporters.recipes.evopress import import_file
from paretopress.exporters.recipes.evopress_writing import export_evopress
from paretopress.search.run.configuration import RunConfig
from paretopress.spaces.model.checkpoint import Checkpoint
from paretopress.spaces.model.dense_model import DenseModel
from paretopress.spaces.model.structure import find_structure
from paretopress.spaces.profile_file import ProfileFile, read_profile

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart-model"
CHECKPOINT = Checkpoint(QUICKSTART)
STRUCTURE = find_structure(CHECKPOINT.skeleton())
LAYERS = [linear.path for linear in STRUCTURE.linears]
BRANCHES = [f"blocks.{i}.{kind}" for i in range(len(STRUCTURE.blocks)) for kind in ("attention", "mlp")]
once = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def winner(units: Mapping[str, str], step: int | None = None) -> Winner:
    content = {"model": "m", "space": {"ladder": {"base": 50, "step": step}}, "budgets": [{"sparsity": 0.5}]}
    config = None if step is None else RunConfig.model_validate(content)
    return Winner(DenseModel(CHECKPOINT, STRUCTURE), None, {}, ProfileFile(units), config)


def imported(found: Winner, folder: Path) -> dict[str, str]:
    """The units of the exported file after the import that the export's own last line names."""
    line = export_evopress(found, folder / "out", True)[-1]
    words = iter(shlex.split(line.removeprefix("to read the file again: paretopress import ")))
    file, options = Path(next(words)), dict[str, Any]()
    for word in words:
        name = word.removeprefix("--")
        options[name] = True if name == "symmetric" else next(words)
    group = int(options.get("group", 0)) or None
    import_file(
        file,
        folder / options["output"],
        step=int(options.get("step", 1_000_000)),
        group=group,
        symmetric=options.get("symmetric", False),
        kind=options.get("kind"),
        overwrite=True,
    )
    return dict(read_profile(folder / options["output"]).units)


def same_length(values: st.SearchStrategy[Any], count: int) -> st.SearchStrategy[list[Any]]:
    return st.lists(values, min_size=count, max_size=count)


@once
@given(
    same_length(st.integers(2, 8), len(LAYERS)),
    st.sampled_from(["", "g64", "g128"]),
    st.sampled_from(["", "a"]),
)
def test_bits_come_back(tmp_path: Path, bits: list[int], group: str, zero: str) -> None:
    units = {path: f"w{width}{group}{zero}" for path, width in zip(LAYERS, bits, strict=True)}
    assert imported(winner(units), tmp_path) == units


@once
@given(
    same_length(st.integers(-4, 9), len(LAYERS)),
    st.sampled_from(["0", "50", "62.5", "33.333333"]),
    st.sampled_from([1, 1000, 1_000_000]),
)
def test_sparsity_comes_back(tmp_path: Path, levels: list[int], base: str, step: int) -> None:
    units = {
        path: f"s{base}" + (f"{level * step:+d}" if level else "")
        for path, level in zip(LAYERS, levels, strict=True)
    }
    assert imported(winner(units, step), tmp_path) == units


@once
@given(same_length(st.sampled_from(["keep", "drop"]), len(BRANCHES)))
def test_drops_come_back(tmp_path: Path, labels: list[str]) -> None:
    units = dict(zip(BRANCHES, labels, strict=True))
    assert imported(winner(units), tmp_path) == units


def test_levels_that_look_like_bits_need_their_kind(tmp_path: Path) -> None:
    units = dict.fromkeys(LAYERS, "s50+3000")
    assert imported(winner(units, 1000), tmp_path) == units
    assert (tmp_path / "out" / "sparse_config_50.txt").read_text().startswith(f"{LAYERS[0]}: 3\n")


def test_fused_groups_are_taken_apart_and_kept_branches_say_nothing(tmp_path: Path) -> None:
    q, k = LAYERS[:2]
    assert imported(winner({f"{q},{k}": "w3g64", "blocks.0.mlp": "keep"}), tmp_path) == {
        q: "w3g64",
        k: "w3g64",
    }


def test_blocks_without_a_unit_stay(tmp_path: Path) -> None:
    found = imported(winner({"blocks.1": "drop", "blocks.2.mlp": "drop"}), tmp_path)
    dropped = [name for name, label in found.items() if label == "drop"]
    assert (list(found), dropped) == (BRANCHES, ["blocks.1.attention", "blocks.1.mlp", "blocks.2.mlp"])


def test_the_folder_says_what_the_file_leaves_out(tmp_path: Path) -> None:
    lines = export_evopress(winner({LAYERS[0]: "w3g64a"}), tmp_path / "out", False)
    assert lines[0] == f"{tmp_path / 'out' / 'quant_config.txt'}: 1 bit widths"
    assert f"--quant_config_path {tmp_path / 'out' / 'quant_config.txt'}" in lines[2]
    record = json.loads((tmp_path / "out" / "paretopress.json").read_text())
    assert (record["format"], record["group"], record["symmetric"]) == ("evopress", 64, False)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({LAYERS[0]: "2:4"}, "level '2:4' of .*q_proj cannot be written to EvoPress's files"),
        ({LAYERS[0]: "dense"}, "level 'dense' of .*q_proj cannot be written to EvoPress's files"),
        ({LAYERS[0]: "s50+w4g128"}, r"level 's50\+w4g128' of .* cannot be written to EvoPress's files"),
        ({LAYERS[0]: "w3g64", LAYERS[1]: "s50"}, "levels of different kinds or base sparsities"),
        ({LAYERS[0]: "s40", LAYERS[1]: "s50"}, "levels of different kinds or base sparsities"),
        ({LAYERS[0]: "w3g64", LAYERS[1]: "w3g128"}, "levels of different group sizes or with and without"),
        ({LAYERS[0]: "w3g64", LAYERS[1]: "w3g64a"}, "levels of different group sizes or with and without"),
        ({LAYERS[0]: "s50+7"}, r"level 's50\+7' of .* is not a whole number of steps of 1000000 zeros"),
        ({LAYERS[0]: "w3g64", "blocks.3.mlp": "drop"}, "q_proj: w3g64 does not fit an EvoPress drop list"),
    ],
)
def test_what_its_files_cannot_say_leaves_nothing(
    units: Mapping[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        export_evopress(winner(units), tmp_path / "out", False)
    assert not list(tmp_path.iterdir())
