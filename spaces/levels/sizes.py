"""Size rules: the bytes that a linear layer takes in the files of each format, for budgets in bytes.

Only the bytes of tensors count. The header of a safetensors file takes about 100 bytes more per tensor.
"""

from collections.abc import Callable

from .ggml.ggml_encoding import GgmlEncoding
from .labels import Scheme, stored_bits

SizeRule = Callable[[Scheme, tuple[int, int], int], int]
"""A function of scheme, shape (O, I) and bits of a dense weight; it returns the bytes of one layer's weight."""


def packed(scheme: Scheme, shape: tuple[int, int], dense_bits: int) -> int:
    """Return the bytes of a layer in the level database: its stored bits, rounded up to whole bytes."""
    return -(-stored_bits(scheme, shape, dense_bits) // 8)


def dense(scheme: Scheme, shape: tuple[int, int], dense_bits: int) -> int:
    """Return the bytes of a layer in a dense checkpoint, which stores every weight at full width at any level."""
    del scheme
    return shape[0] * shape[1] * dense_bits // 8


def compressed_tensors(scheme: Scheme, shape: tuple[int, int], dense_bits: int) -> int:
    """Return the bytes of a layer in the format `pack-quantized` of compressed-tensors 0.19 or newer.

    Every row of codes is packed into 32-bit words. Each group has a 16-bit scale; an asymmetric grid, which the
    exporter does not write, is counted with a 16-bit zero point too. The shape takes two int64. Layers without a grid
    are dense, because the format stores no masks.
    """
    if scheme.grid is None:
        return dense(scheme, shape, dense_bits)
    out_features, in_features = shape
    words = -(-in_features * scheme.grid.bits // 32)
    scales = 2 * out_features * scheme.grid.groups(in_features)
    return 4 * out_features * words + scales * (1 if scheme.grid.symmetric else 2) + 16


def gguf(scheme: Scheme, shape: tuple[int, int], dense_bits: int) -> int:
    """Return the bytes of a layer in a GGUF file of llama.cpp.

    Levels of llama.cpp's storage types are stored as they are, all others dense. The padding that aligns a tensor to
    32 bytes is not counted.
    """
    stored = isinstance(scheme.encoding, GgmlEncoding)
    return packed(scheme, shape, dense_bits) if stored else dense(scheme, shape, dense_bits)


SIZE_RULES: dict[str, SizeRule] = {
    "packed": packed,
    "hf": dense,
    "compressed-tensors": compressed_tensors,
    "gguf": gguf,
}
"""The size rule of every format, by the name of the format."""
