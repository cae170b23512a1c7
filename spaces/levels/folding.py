"""Sums in a fixed order, whose bits do not depend on machine, number of threads or memory layout."""

from torch import Tensor


def fold(terms: Tensor, dim: int) -> Tensor:
    """Sum over `dim` by adding one half of the terms to the other until one is left; `terms` are overwritten.

    Terms are added in the order that they would have if zeros filled up their number to a power of two. `Tensor.sum`
    adds in an order that depends on layout, position, threads and device. The additions here are elementwise, so each
    result depends only on its own terms.
    """
    size = terms.shape[dim]
    half = 1 << (size - 1).bit_length() >> 1
    while half:
        terms.narrow(dim, 0, size - half).add_(terms.narrow(dim, half, size - half))
        size, half = half, half // 2
    return terms.select(dim, 0)
