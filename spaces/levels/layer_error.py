"""The output error of a compressed layer, computed so that every machine gets the same bits.

For a weight W, its approximation Q and E = W - Q, the squared error is the sum over all pairs of inputs of E^T E times
the Hessian H, elementwise. The errors of each input are rounded to whole multiples of a small unit, so that float64
holds E^T E exactly. Its value therefore does not depend on the order of sums, the number of threads or the device. All
later operations are elementwise or a `fold`.

Shapes: O outputs, I inputs, K inputs of a block, L inputs from the first of a block to the last of the layer.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .folding import fold

_BLOCK = 1024
"""Number of inputs whose rows of E^T E are held at once."""


def layer_errors(
    weight_OI: Tensor, approximations: Mapping[str, Tensor], hessian_II: Tensor | None
) -> dict[str, float]:
    """Compute `layer_error` for several approximations of one weight, with the denominator computed once.

    Args:
        weight_OI: dense weight of the layer.
        approximations: approximate weights (O, I) by name.
        hessian_II: sum or mean of x x^T over calibration inputs, or None.

    Returns:
        The normalised squared error of each approximation, by name.
    """
    weight_OI = weight_OI.detach().double()
    whole = _energy(weight_OI, hessian_II)
    return {
        name: _energy(weight_OI - approximation_OI, hessian_II) / whole if whole else 0.0
        for name, approximation_OI in approximations.items()
    }


def layer_error(weight_OI: Tensor, approximation_OI: Tensor, hessian_II: Tensor | None) -> float:
    """Compute the normalised squared error of a layer's output, tr((W-Q) H (W-Q)^T) / tr(W H W^T).

    It is 0 if the dense layer returns only zeros. Without a Hessian the inputs count as uncorrelated and of equal size.
    The relative precision is 1e-6 or better. Time: half a float64 product of (I, O) by (O, I), and as much for the
    denominator. Memory: three times the weight in float64.

    Args:
        weight_OI: dense weight of the layer.
        approximation_OI: approximate weight of the layer.
        hessian_II: sum or mean of x x^T over calibration inputs, or None.
    """
    return layer_errors(weight_OI, {"": approximation_OI}, hessian_II)[""]


def _energy(rows_OI: Tensor, hessian_II: Tensor | None) -> float:
    """Compute the sum over all rows r of r H r^T, with the identity in place of a missing Hessian."""
    if hessian_II is None:
        return float(fold(fold(rows_OI.square(), 1), 0))
    size_I = rows_OI.abs().amax(dim=0)
    # A sum of O products of two integers with this many bits is at most 2^53, which float64 holds exactly.
    bits = (53 - math.ceil(math.log2(len(rows_OI)))) // 2
    unit_I = torch.where(size_I > 0, size_I, 1.0) / 2.0**bits
    whole_OI = (rows_OI / unit_I).round_()
    total = rows_OI.new_zeros(())
    for start in range(0, len(unit_I), _BLOCK):
        block, onwards = slice(start, start + _BLOCK), slice(start, None)
        pairs_KL = whole_OI[:, block].T @ whole_OI[:, onwards]
        # The mirror image of a pair with a later block is not computed, so such a pair counts twice.
        unit_L = unit_I[onwards].clone()
        unit_L[_BLOCK:] *= 2
        pairs_KL.mul_(hessian_II[block, onwards]).mul_(unit_L)
        total += fold(fold(pairs_KL, 1) * unit_I[block], 0)
    return float(total)
