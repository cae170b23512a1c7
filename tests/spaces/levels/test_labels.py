"""Labels: the grammar, counts of zeros and stored bits."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.spaces.levels.labels import (
    Grid,
    Pattern,
    Scheme,
    Unstructured,
    kept,
    parse_label,
    stored_bits,
)


@pytest.mark.parametrize(
    ("label", "scheme"),
    [
        ("dense", Scheme()),
        ("w4g128", Scheme(grid=Grid(4, 128, True))),
        ("w8", Scheme(grid=Grid(8, None, True))),
        ("w2a", Scheme(grid=Grid(2, None, False))),
        ("w3g64a", Scheme(grid=Grid(3, 64, False))),
        ("s60", Scheme(Unstructured(0.6))),
        ("s62.5", Scheme(Unstructured(0.625))),
        ("s60-1000000", Scheme(Unstructured(0.6, -1_000_000))),
        ("s60+2000000", Scheme(Unstructured(0.6, 2_000_000))),
        ("2:4", Scheme(Pattern(2, 4))),
        ("4:8+w4g128", Scheme(Pattern(4, 8), Grid(4, 128, True))),
        ("s60+2000000+w3g64a", Scheme(Unstructured(0.6, 2_000_000), Grid(3, 64, False))),
    ],
)
def test_a_label_names_its_scheme(label: str, scheme: Scheme) -> None:
    assert parse_label(label) == scheme


@pytest.mark.parametrize(
    "label",
    ["", "w", "w1", "w9", "w4g0", "w4g", "w4g128b", "s", "s100", "s60+", "s60w4", "s-5", "4:4", "5:4", "0:4"],
)
def test_a_malformed_part_is_refused_with_the_grammar(label: str) -> None:
    with pytest.raises(ValueError, match=r"is unknown; levels look like dense, w4g128"):
        parse_label(label)


@pytest.mark.parametrize(
    "label", ["+w4", "w4+2:4", "2:4+", "2:4+w", "2:4w4", "w4g128+w3", "keep", "drop", "Dense", "w4 "]
)
def test_a_malformed_whole_is_refused_with_the_grammar(label: str) -> None:
    with pytest.raises(ValueError, match=r"is unknown; levels look like dense, w4g128"):
        parse_label(label)


def test_seven_billion_weights_at_three_bits_store_three_and_a_quarter() -> None:
    numel = 6_979_321_856
    assert 4 * stored_bits(parse_label("w3g128a"), (numel // 4096, 4096)) == 13 * numel


@pytest.mark.parametrize(
    ("label", "shape", "bits"),
    [
        ("dense", (3, 5), 16 * 15),
        ("w4g4", (3, 5), 4 * 15 + 16 * 3 * 2),
        ("w4a", (3, 5), 4 * 15 + 32 * 3),
        ("s60", (3, 5), 15 + 16 * 6),
        ("2:4", (3, 8), 24 + 16 * 12),
        ("2:4+w4g8", (3, 8), 24 + 4 * 12 + 16 * 3),
    ],
)
def test_stored_bits_count_everything(label: str, shape: tuple[int, int], bits: int) -> None:
    assert stored_bits(parse_label(label), shape) == bits


def test_dense_bits_follow_the_model() -> None:
    assert stored_bits(parse_label("dense"), (3, 5), dense_bits=32) == 32 * 15


@settings(deadline=None)
@given(st.integers(0, 99), st.integers(-500, 500), st.integers(1, 400))
def test_zeros_and_kept_weights_add_up(percent: int, offset: int, numel: int) -> None:
    zeros = Unstructured(percent / 100, offset).zeros(numel)
    assert 0 <= zeros <= numel
    assert zeros == min(max(-(-percent * numel // 100) + offset, 0), numel)
    assert kept(Scheme(Unstructured(percent / 100, offset)), numel) == numel - zeros


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("Q4_K", "'Q4_K' is unknown; did you mean 'q4_k'"),
        ("IQ3_XXS", "did you mean 'iq3_xxs'"),
        ("q4_k_m", "'q4_k_m' is a mix of llama.cpp's types, mostly q4_k"),
        ("Q3_K_S", "'Q3_K_S' is a mix of llama.cpp's types, mostly q3_k"),
    ],
)
def test_names_of_llama_cpp_are_answered_with_the_types_to_give(label: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_label(label)
