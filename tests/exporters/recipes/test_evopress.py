"""EvoPress's formats on small files of our own, read, turned into profiles and written again."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.exporters.recipes.evopress import (
    EvoPressConfiguration,
    Scale,
    import_file,
    parse_evopress,
    read_evopress,
)
from paretopress.exporters.recipes.evopress_writing import from_units
from paretopress.spaces.levels.labels import kept, parse_label
from paretopress.spaces.model.checkpoint import Checkpoint
from paretopress.spaces.model.structure import Structure, find_structure
from paretopress.spaces.profile_file import read_profile, write_profile

SAMPLES = Path(__file__).parents[2] / "data" / "evopress"
QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart-model"


@pytest.fixture(scope="module")
def structure() -> Structure:
    return find_structure(Checkpoint(QUICKSTART).skeleton())


def test_bits_become_asymmetric_groups_of_128() -> None:
    configuration = read_evopress(SAMPLES / "tiny_3bit.txt")
    units = configuration.units()
    assert configuration.kind == "quantization"
    assert len(units) == 8
    assert units["model.layers.0.self_attn.q_proj"] == "w2g128a"
    assert units["model.layers.1.self_attn.v_proj"] == "w4g128a"


def test_group_and_symmetry_are_options() -> None:
    configuration = read_evopress(SAMPLES / "tiny_3bit.txt")
    assert configuration.units(Scale(group=64, symmetric=True))["model.layers.0.self_attn.q_proj"] == "w2g64"
    assert configuration.units(Scale(group=None))["model.layers.0.self_attn.q_proj"] == "w2a"


def test_sparsity_levels_are_steps_of_a_million_zeros_around_the_base_in_the_name() -> None:
    configuration = read_evopress(SAMPLES / "tiny_60.txt")
    units = configuration.units()
    assert configuration.kind == "sparsity"
    assert configuration.base == 60
    assert units == {
        "model.layers.0.mlp.down_proj": "s60-3000000",
        "model.layers.0.mlp.gate_up_proj": "s60+1000000",
        "model.layers.10.mlp.down_proj": "s60",
        "model.layers.10.mlp.gate_up_proj": "s60+2000000",
    }
    # level -3 of a 4096 x 4096 layer: 0.6 - 3e6 / 2^24 of its weights are zero.
    zeros = 2**24 - kept(parse_label(units["model.layers.0.mlp.down_proj"]), 2**24)
    assert abs(zeros / 2**24 - (0.6 - 3e6 / 2**24)) < 1e-7


def test_base_and_step_are_options_and_the_base_is_needed() -> None:
    units = read_evopress(SAMPLES / "tiny_60.txt").units(Scale(base=62.5, step=1000))
    assert units["model.layers.0.mlp.down_proj"] == "s62.5-3000"
    nameless = parse_evopress((SAMPLES / "tiny_60.txt").read_text())
    with pytest.raises(
        ValueError, match=r"sparsity at level 0 is unknown; give it with --base, or let the file name"
    ):
        nameless.units()


def test_drop_list_names_what_is_removed() -> None:
    configuration = read_evopress(SAMPLES / "layer_drop_config.txt")
    assert configuration.units() == {
        "blocks.0.attention": "keep",
        "blocks.0.mlp": "keep",
        "blocks.1.attention": "drop",
        "blocks.1.mlp": "keep",
        "blocks.2.attention": "keep",
        "blocks.2.mlp": "drop",
        "blocks.3.attention": "drop",
        "blocks.3.mlp": "drop",
    }


def test_fused_names_stay_one_unit_and_share_their_level() -> None:
    configuration = read_evopress(SAMPLES / "tiny_fused.txt")
    prefix = "model.layers.0.self_attn."
    assert list(configuration.units().values()) == ["w3g128a", "w4g128a"]
    assert configuration.modules == {f"{prefix}{x}_proj": 3 for x in "qkv"} | {f"{prefix}o_proj": 4}


@pytest.mark.parametrize("name", ["tiny_3bit.txt", "tiny_60.txt", "layer_drop_config.txt"])
def test_text_is_written_as_it_was(name: str) -> None:
    assert read_evopress(SAMPLES / name).text() == (SAMPLES / name).read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.txt is empty"),
        ("a: 3\nb: 3.5", "f.txt line 2: level '3.5' is not an integer"),
        ("a: 2.5625 (2.5625-Q2_K.pth)", "f.txt line 1: '2.5625 (2.5625-Q2_K.pth)' names a GGUF type"),
        ("a: 3\n\nb: 4\na: 3", "f.txt line 4: a has a level already, in line 1"),
        ("a,b: 3\nb: 4", "f.txt line 2: b has a level already, in line 1"),
        ("a: 3\nb 4", "f.txt line 2: 'b 4' is not `module: level`"),
        ("a: 3\n: 4", "f.txt line 2: ': 4' is not `module: level`"),
        ("none\nattn+mpl", "f.txt line 2: 'attn+mpl' names no branches; did you mean 'attn+mlp'?"),
        ("a: 1\nb: 3", "f.txt has levels 1 to 3, neither bits (2 to 8) nor sparsity levels around 0"),
    ],
)
def test_what_is_not_of_the_format_is_refused_with_file_line_and_reason(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_evopress(text, "f.txt")


def test_kind_can_be_given_and_is_checked() -> None:
    assert parse_evopress("a: 2\nb: 3", kind="sparsity").kind == "sparsity"
    with pytest.raises(ValueError, match="line 2: 'b: 9' does not give 2 to 8 bits"):
        parse_evopress("a: 2\nb: 9", kind="quantization")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "errors.pth").write_bytes(b"PK\x03\x04\xff")
    with pytest.raises(ValueError, match="is not text at byte 4"):
        read_evopress(tmp_path / "errors.pth")


def test_last_colon_separates_and_order_spaces_and_line_ends_do_not_matter() -> None:
    configuration = parse_evopress("b:c :  4 \r\n\r\na,  d: 3\r\n")
    assert dict(configuration.levels) == {"b:c": 4, "a,d": 3}


names = st.from_regex(r"[a-z]{1,6}(\.[a-z0-9_]{1,6}){1,3}", fullmatch=True)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(names, st.integers(2, 8), min_size=1))
def test_bits_survive_the_round_trip(levels: Mapping[str, int]) -> None:
    configuration = EvoPressConfiguration("quantization", levels)
    assert parse_evopress(configuration.text()) == configuration
    assert from_units(configuration.units()) == configuration


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(names, st.integers(-9, 9), min_size=1),
    st.sampled_from([50.0, 62.5, 70.0]),
    st.sampled_from([1, 1000, 1_000_000]),
)
def test_sparsity_levels_survive_the_round_trip(levels: Mapping[str, int], base: float, step: int) -> None:
    configuration = EvoPressConfiguration("sparsity", levels, base=base)
    assert parse_evopress(configuration.text(), kind="sparsity").levels == levels
    assert from_units(configuration.units(Scale(step=step)), step) == configuration


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([(), ("attention",), ("mlp",), ("attention", "mlp")]), min_size=1))
def test_drops_survive_the_round_trip(drops: list[tuple[str, ...]]) -> None:
    configuration = EvoPressConfiguration("drop", {}, tuple(drops))
    assert parse_evopress(configuration.text()) == configuration
    assert from_units(configuration.units()) == configuration


def test_whole_blocks_become_both_branches() -> None:
    assert from_units({"blocks.0": "keep", "blocks.1": "drop"}).drops == ((), ("attention", "mlp"))


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({"a": "2:4"}, "level '2:4' of a cannot be written to EvoPress's files"),
        ({"a": "s60+1500000"}, "level 's60+1500000' of a is not a whole number of steps of 1000000 zeros"),
        ({"a": "s60", "b": "w3g128"}, "levels of different kinds or base sparsities"),
        ({"blocks.0.mlp": "drop", "a": "w3"}, "a: w3 does not fit an EvoPress drop list"),
        ({"blocks.1.mlp": "drop"}, "names every block"),
    ],
)
def test_profiles_that_its_files_cannot_say_are_refused(units: Mapping[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        from_units(units)


def test_profile_is_checked_against_a_model(structure: Structure, tmp_path: Path) -> None:
    levels = {linear.path: 3 for linear in structure.linears}
    configuration = EvoPressConfiguration("quantization", levels)
    write_profile(tmp_path / "p.yaml", configuration.profile(structure=structure))
    assert read_profile(tmp_path / "p.yaml").units == dict.fromkeys(levels, "w3g128a")
    first = next(iter(levels))
    with pytest.raises(ValueError, match=rf"1 layers have no level in the file, the first is {first}"):
        EvoPressConfiguration("quantization", {k: v for k, v in levels.items() if k != first}).profile(
            structure=structure
        )
    with pytest.raises(
        ValueError, match=r"module 'model.layers.0.self_attn.q' is not in the model; did you mean"
    ):
        EvoPressConfiguration("quantization", {**levels, "model.layers.0.self_attn.q": 3}).profile(
            structure=structure
        )
    with pytest.raises(
        ValueError, match="the file has 4 blocks, but the model has 8; give a file of this model"
    ):
        read_evopress(SAMPLES / "layer_drop_config.txt").profile(structure=structure)


def test_import_writes_a_profile_and_says_so(tmp_path: Path) -> None:
    output = tmp_path / "p.yaml"
    sentence = import_file(SAMPLES / "tiny_3bit.txt", output, group=32, symmetric=True)
    assert sentence == f"{output}: a profile with 8 bit widths from {SAMPLES / 'tiny_3bit.txt'}"
    assert read_profile(output).units["model.layers.0.self_attn.q_proj"] == "w2g32"
    assert "4 blocks" in import_file(SAMPLES / "layer_drop_config.txt", output, overwrite=True)
    with pytest.raises(ValueError, match="step 0 and group 128 must be at least 1"):
        import_file(SAMPLES / "tiny_60.txt", output, step=0)
