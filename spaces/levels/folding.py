"""Sums in one order: the same bits on every machine, with any number of threads, whatever lies beside the terms."""

from torch import Tensor


def fold(terms: Tensor, dim: int) -> Tensor:
    """Sum over `dim` by halving, as if padded with zeros to a power of two; `terms` are overwritten.

    `Tensor.sum` adds in an order that depends on layout, position, threads and device; these are whole-tensor
    additions, whose elements know nothing of each other.
    """
    size = terms.shape[dim]
    half = 1 << (size - 1).bit_length() >> 1
    while half:
        terms.narrow(dim, 0, size - half).add_(terms.narrow(dim, half, size - half))
        size, half = half, half // 2
    return terms.select(dim, 0)
