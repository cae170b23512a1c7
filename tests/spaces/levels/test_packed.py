"""Packed levels: bytes, sizes and the weights they stand for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.spaces.levels.bits import pack, unpack
from paretopress.spaces.levels.builders import BuilderConfig, build
from paretopress.spaces.levels.labels import kept, parse_label, stored_bits
from paretopress.spaces.levels.packed import Packed

PLAIN = BuilderConfig(quantizer="rtn", pruner="magnitude")
GRIDS = ["w2g8", "w3g16a", "w4", "w5a", "w6g4", "w7g128", "w8g8a", "w8g8"]
MASKS = ["s0", "s60", "s95", "s50-7", "s50+3", "2:4", "1:4", "4:8"]
COMBINED = ["2:4+w4g8", "s60+w3", "s33+w5g16a", "4:8+w8a"]
LABELS = ["dense", *GRIDS, *MASKS, *COMBINED]


def random_weight(shape: tuple[int, int], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def codes_of_bits(draw: st.DrawFn) -> tuple[int, list[int]]:
    bits = draw(st.integers(1, 8))
    return bits, draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))


@settings(deadline=None)
@given(codes_of_bits())
def test_packing_is_a_little_endian_bit_string_and_reversible(case: tuple[int, list[int]]) -> None:
    bits, codes = case
    packed = pack(torch.tensor(codes, dtype=torch.uint8), bits)
    expected = sum(code << (bits * i) for i, code in enumerate(codes))
    assert bytes(packed.tolist()) == expected.to_bytes(-(-len(codes) * bits // 8), "little")
    assert unpack(packed, bits, len(codes)).tolist() == codes


@settings(deadline=None)
@given(st.sampled_from(LABELS), st.integers(1, 9), st.integers(1, 6), st.integers(0, 99))
def test_bits_are_the_stored_bits_but_for_the_last_byte(
    label: str, rows: int, eights: int, seed: int
) -> None:
    shape = (rows, 8 * eights)
    packed = build(random_weight(shape, seed), None, [label], config=PLAIN)[label]
    padded = sum(name in packed.tensors for name in ("codes", "mask"))
    assert 0 <= packed.bits - stored_bits(parse_label(label), shape) <= 7 * padded


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.sampled_from(["s60", "w3g16a", "s60+w3", "dense", "w5"]))
def test_any_width_is_stored_exactly(rows: int, width: int, label: str) -> None:
    weight = random_weight((rows, width), width)
    packed = build(weight, None, [label], config=PLAIN)[label]
    padded = sum(name in packed.tensors for name in ("codes", "mask"))
    assert 0 <= packed.bits - stored_bits(parse_label(label), (rows, width)) <= 7 * padded
    assert packed.dense().shape == weight.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("label", ["dense", *MASKS])
def test_values_come_back_in_their_places(label: str, dtype: torch.dtype) -> None:
    weight = random_weight((6, 24), 0)
    packed = build(weight, None, [label], config=PLAIN, dtype=dtype)[label]
    dense, mask = packed.dense(), packed.mask()
    survives = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    assert dense.dtype == packed.dtype == dtype
    assert int(survives.sum()) == kept(parse_label(label), weight.numel())
    assert torch.equal(dense, torch.where(survives, weight.to(dtype), 0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("label", [*GRIDS, *COMBINED])
def test_values_are_codes_times_scales_rounded_once(label: str, dtype: torch.dtype) -> None:
    weight = random_weight((6, 24), 1)
    packed = build(weight, None, [label], config=PLAIN, dtype=dtype)[label]
    grid = parse_label(label).grid
    assert grid is not None
    codes, dense = packed.codes(), packed.dense()
    for row in range(6):
        for column in range(24):
            group = column // (grid.group or 24)
            zero = float(packed.tensors["zeros"][row, group]) if "zeros" in packed.tensors else 0.0
            exact = (float(codes[row, column]) - zero) * float(packed.tensors["scales"][row, group])
            assert dense[row, column] == torch.tensor(exact, dtype=torch.float64).float().to(dtype)
    mask = packed.mask()
    if mask is not None:
        assert int(mask.sum()) == kept(parse_label(label), weight.numel())
        assert not dense[~mask].any()


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(0, 99), st.floats(1e-6, 1e3))
def test_symmetric_codes_lie_around_zero(bits: int, seed: int, size: float) -> None:
    weight = random_weight((4, 40), seed) * size
    config = BuilderConfig(quantizer="rtn", scales="minmax")
    packed = build(weight, None, [f"w{bits}g16"], config=config)[f"w{bits}g16"]
    codes = packed.codes()
    assert codes.dtype == torch.int8
    assert -(2 ** (bits - 1)) <= int(codes.min()) < 0 < int(codes.max()) <= 2 ** (bits - 1) - 1
    for group in range(3):
        largest = weight[:, 16 * group : 16 * group + 16].abs().amax(1)
        expected = (largest / ((2**bits - 1) / 2)).half()
        assert torch.equal(packed.tensors["scales"][:, group], expected.clamp(min=2.0**-24))


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(0, 99))
def test_asymmetric_grids_hold_zero_and_span_the_weights(bits: int, seed: int) -> None:
    weight = random_weight((4, 40), seed) + 0.5
    label = f"w{bits}g16a"
    packed = build(weight, None, [label], config=BuilderConfig(quantizer="rtn", scales="minmax"))[label]
    zeros, scales = packed.tensors["zeros"].float(), packed.tensors["scales"].float()
    assert torch.equal(zeros, zeros.round())
    assert bool(((zeros >= 0) & (zeros <= 2**bits - 1)).all())
    steps = scales[:, torch.arange(40) // 16]
    assert bool(((packed.dense().float() - weight).abs() <= 1.01 * steps).all())


def test_pruned_weights_of_an_asymmetric_level_have_the_code_of_zero() -> None:
    packed = build(random_weight((6, 24), 2) + 0.5, None, ["s50+w4g8a"], config=PLAIN)["s50+w4g8a"]
    mask = packed.mask()
    assert mask is not None
    zeros = packed.tensors["zeros"][:, torch.arange(24) // 8]
    assert torch.equal(packed.codes()[~mask].to(zeros.dtype), zeros[~mask])


@pytest.mark.parametrize("label", ["w4g8", "w4g8a", "2:4+w4g8"])
def test_a_group_of_zeros_stays_zero(label: str) -> None:
    weight = random_weight((4, 16), 3)
    weight[:, :8] = 0
    dense = build(weight, None, [label], config=PLAIN)[label].dense()
    assert not dense[:, :8].any()
    assert dense[:, 8:].any()


def test_bits_two_to_six_take_at_most_2_7_bytes_per_weight() -> None:
    labels = [f"w{bits}g128" for bits in range(2, 7)]
    weight = random_weight((64, 512), 4)
    built = build(weight, None, labels, config=PLAIN)
    assert sum(packed.bits for packed in built.values()) / 8 <= 2.7 * weight.numel()


def test_a_level_without_integers_has_no_codes() -> None:
    packed = Packed(
        "s50", (1, 2), {"mask": torch.tensor([1], dtype=torch.uint8), "values": torch.ones(1).half()}
    )
    assert packed.dense().tolist() == [[1.0, 0.0]]
    with pytest.raises(ValueError, match="level 's50' stores no integers; use `dense`"):
        packed.codes()
