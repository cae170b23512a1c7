"""Bytes that a linear layer takes in the files of each format: the size rules that byte budgets use.

Tensor bytes only; a safetensors header comes on top (about 100 bytes per tensor).
"""

from collections.abc import Callable

from .labels import Scheme, stored_bits

SizeRule = Callable[[Scheme, tuple[int, int], int], int]
"""(scheme, (out, in), bits of a dense weight) to bytes of one layer's weight."""


def packed(scheme: Scheme, shape: tuple[int, int], dense_bits: int) -> int:
    """The level database: everything `stored_bits` counts, rounded up to whole bytes."""
    return -(-stored_bits(scheme, shape, dense_bits) // 8)


def dense(scheme: Scheme, shape: tuple[int, int], dense_bits: int) -> int:
    """A dense checkpoint: every weight at full width, whatever its level."""
    del scheme
    return shape[0] * shape[1] * dense_bits // 8


def compressed_tensors(scheme: Scheme, shape: tuple[int, int], dense_bits: int) -> int:
    """compressed-tensors `pack-quantized` (0.19 or newer): rows of codes packed into 32-bit words.

    A scale per group at the model's 16 bits and the int64 shape follow. Layers without a grid are dense: the
    format stores no masks.
    """
    if scheme.grid is None:
        return dense(scheme, shape, dense_bits)
    out_features, in_features = shape
    words = -(-in_features * scheme.grid.bits // 32)
    scales = 2 * out_features * scheme.grid.groups(in_features)
    return 4 * out_features * words + scales * (1 if scheme.grid.symmetric else 2) + 16


def gguf(scheme: Scheme, shape: tuple[int, int], dense_bits: int) -> int:
    """llama.cpp's files: its own types as they are, all else dense. Without what aligns a tensor to 32 bytes."""
    return packed(scheme, shape, dense_bits) if scheme.blocks else dense(scheme, shape, dense_bits)


SIZE_RULES: dict[str, SizeRule] = {
    "packed": packed,
    "hf": dense,
    "compressed-tensors": compressed_tensors,
    "gguf": gguf,
}
