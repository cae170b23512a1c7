"""Packed words against the plain definition in bits, and against the library whose files they are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paretopress.exporters.checkpoints.words import from_words, to_words, word_count

sizes = st.tuples(st.integers(1, 8), st.integers(1, 5), st.integers(1, 100), st.integers(0, 2**32))


def random_codes(bits: int, outputs: int, inputs: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**bits, (outputs, inputs), generator=generator, dtype=torch.uint8)


def plain_words(row: list[int], bits: int) -> list[int]:
    """Code i in the bits from i * bits on of one long number, cut into words of 32 bits, as signed."""
    number = sum(code << i * bits for i, code in enumerate(row))
    words = [number >> 32 * w & 0xFFFFFFFF for w in range(-(-len(row) * bits // 32))]
    return [word - 2**32 if word >= 2**31 else word for word in words]


@settings(max_examples=60, deadline=None)
@given(sizes)
def test_words_are_the_bits_of_one_long_number(size: tuple[int, int, int, int]) -> None:
    bits, _, inputs, _ = size
    codes = random_codes(*size)
    words = to_words(codes, bits)
    assert words.dtype == torch.int32
    assert words.shape[1] == word_count(inputs, bits)
    assert words.tolist() == [plain_words(row, bits) for row in codes.tolist()]


@settings(max_examples=60, deadline=None)
@given(sizes)
def test_codes_come_back(size: tuple[int, int, int, int]) -> None:
    codes = random_codes(*size)
    assert torch.equal(from_words(to_words(codes, size[0]), size[0], size[2]), codes)


@settings(max_examples=60, deadline=None)
@given(sizes)
def test_the_library_packs_and_unpacks_the_same(size: tuple[int, int, int, int]) -> None:
    library = pytest.importorskip("compressed_tensors.compressors")
    bits = size[0]
    codes = random_codes(*size)
    around_zero = (codes.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
    words = to_words(codes, bits)
    assert torch.equal(words, library.pack_to_int32(around_zero, bits))
    assert torch.equal(library.unpack_from_int32(words, bits, codes.shape), around_zero)
