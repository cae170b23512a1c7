"""Profile files: written, edited, read back, and turned into layers of a model."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.exporters.artifact.layer_labels import layer_labels
from paretopress.spaces.levels.labels import parse_label
from paretopress.spaces.model.checkpoint import Checkpoint
from paretopress.spaces.model.structure import Structure, find_structure
from paretopress.spaces.profile_file import ProfileFile, read_profile, write_profile
from paretopress.spaces.space import Space
from paretopress.spaces.unit import Level, Unit

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart-model"
FULL = ProfileFile(
    {"blocks.0.mlp": "drop", "a.b,a.c": "2:4", "d": "s60+1000000"},
    model="models/größer: №1",
    fingerprint="0123456789",
    method="evolution",
    budget="bits 3.25",
    costs={"bits": 123456789012, "bytes": 77},
    heldout={"kl": 0.0123456789012345, "perplexity": 7.5},
)


@pytest.fixture(scope="module")
def structure() -> Structure:
    return find_structure(Checkpoint(QUICKSTART).skeleton())


def space() -> Space:
    def levels(*labels: str) -> tuple[Level, ...]:
        return tuple(Level(label, {"bits": i}) for i, label in enumerate(labels))

    return Space(
        (
            Unit("blocks.0.mlp", ("a.b",), 0, "mlp", levels("drop", "keep")),
            Unit("a.b", ("a.b",), 0, "mlp", levels("2:4", "dense"), parent=0),
            Unit("d", ("d",), 0, "attention", levels("w2", "w3")),
        ),
        weights=1,
    )


def test_everything_known_is_read_back(tmp_path: Path) -> None:
    write_profile(tmp_path / "p.yaml", FULL)
    assert read_profile(tmp_path / "p.yaml") == FULL
    text = (tmp_path / "p.yaml").read_text()
    assert text.startswith("# A paretopress profile")
    assert "a.b,a.c: '2:4'" in text


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    write_profile(tmp_path / "p.yaml", ProfileFile({"a": "w3"}))
    assert (tmp_path / "p.yaml").read_text().splitlines()[1:] == ["format_version: 1", "units:", "  a: w3"]


labels = st.from_regex(
    r"(drop|keep|dense|w[2-8](g[1-9]\d{0,2})?a?|s\d{1,2}([+-]\d{1,7})?|2:4(\+w4)?)", fullmatch=True
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(min_size=1), labels, min_size=1, max_size=5))
def test_any_units_are_read_back(tmp_path_factory: pytest.TempPathFactory, units: dict[str, str]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    write_profile(path, ProfileFile(units))
    assert read_profile(path).units == units


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("units: {a: w3}", "carries no format_version"),
        ("format_version: 9\nunits: {a: w3}", "has format_version 9, this release reads up to 1; upgrade"),
        ("format_version: 1\nunit: {a: w3}", "has the unknown key 'unit'; did you mean 'units'?"),
        ("format_version: 1", "has no units; a profile needs `units:`"),
        ("format_version: 1\nunits: [a]", "has no units"),
        ("format_version: 1\nunits: {a: 2:4}", "the level of a reads as 124, not as text; put it in quotes"),
        ("format_version: 1\nunits: {a: w9}", "unit a: level 'w9' is unknown; levels look like"),
        ("format_version: 1\nunits: {7: w4}", "unit 7 is not text"),
        ("format_version: 1\nunits:\n  a: w3\n  b: w3\n  a: w4", "line 5 repeats 'a'; keep one of the two"),
        ("format_version: 1\nbudget: 3.25\nunits: {a: w3}", "`budget` is 3.25, which is not text"),
        (
            "format_version: 1\ncosts: {bits: many}\nunits: {a: w3}",
            "`costs` has 'many' for 'bits'; write a number",
        ),
        ("format_version: 1\nheldout: 3\nunits: {a: w3}", "`heldout` is 3; it must map names to numbers"),
        ("units: [", "is not YAML at line 1"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "edited.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"edited\.yaml.*{re.escape(message)}"):
        read_profile(path)


def test_profile_in_a_space() -> None:
    assert ProfileFile({"blocks.0.mlp": "drop", "d": "w3"}).profile(space()) == (0, 0, 1)
    assert ProfileFile({"blocks.0.mlp": "keep", "a.b": "dense", "d": "w2"}).profile(space()) == (1, 1, 0)
    with pytest.raises(
        ValueError, match=r"unit 'blocks.0.mpl' is not in this space; did you mean 'blocks.0.mlp'\?"
    ):
        ProfileFile({"blocks.0.mpl": "drop"}).profile(space())
    with pytest.raises(ValueError, match="unit 'd' has no level"):
        ProfileFile({"blocks.0.mlp": "drop"}).profile(space())


def test_layers_of_a_model_without_a_space(structure: Structure) -> None:
    q, k, v, o = (linear.path for linear in structure.blocks[0].branches[0].linears)
    mlp = [linear.path for linear in structure.blocks[1].branches[1].linears]
    units = {
        f"{q},{k}": "w3g128",
        v: "dense",
        o: "s50",
        "blocks.1.mlp": "drop",
        mlp[0]: "w2",
        "blocks.1.attention": "keep",
        "blocks.2": "drop",
        structure.ends.embedding.path: "w8",
    }
    gone = [*mlp, *(linear.path for linear in structure.blocks[2].linears)]
    expected = {q: "w3g128", k: "w3g128", o: "s50", structure.ends.embedding.path: "w8"} | dict.fromkeys(
        gone, "drop"
    )
    assert layer_labels(units, structure) == expected


def test_layers_agree_with_the_assignment_of_a_space(structure: Structure) -> None:
    units: list[Unit] = []
    for block in structure.blocks:
        for branch in block.branches:
            parent = len(units)
            paths = tuple(linear.path for linear in branch.linears)
            drops = (Level("drop", {}), Level("keep", {}))
            units.append(Unit(f"blocks.{block.index}.{branch.kind}", paths, block.index, branch.kind, drops))
            for path in paths:
                levels = tuple(Level(label, {}) for label in ("w2", "dense", "s50"))
                units.append(Unit(path, (path,), block.index, branch.kind, levels, parent))
    whole = Space(tuple(units))
    profile = tuple(i % len(unit.levels) for i, unit in enumerate(whole.units))
    assert layer_labels(whole.describe(profile), structure) == whole.assignment(profile)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({"blocks.8": "drop"}, "unit 'blocks.8' is not in the model; did you mean"),
        ({"blocks.0.mlp": "w4"}, "unit 'blocks.0.mlp' cannot be 'w4'; branches are kept or dropped"),
        ({"model.layers.0.self_attn.q_proj": "drop"}, "cannot be 'drop'"),
    ],
)
def test_units_of_no_model_are_refused(structure: Structure, units: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        layer_labels(units, structure)


@settings(deadline=None)
@given(labels.filter(lambda label: label not in ("drop", "keep")))
def test_generated_labels_are_of_the_grammar(label: str) -> None:
    parse_label(label)
