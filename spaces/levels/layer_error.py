"""How far a compressed layer's output is from the dense one's, exactly reproducible.

For E = W - Q it is the sum over all pairs of inputs of E^T E times H. Each input's errors are taken as whole numbers,
so that float64 holds E^T E exactly: no order of its sums, no number of threads and no device can change it. What
follows is elementwise, or a fold.

Shapes: O outputs, I inputs, K inputs of a block, L inputs from the first of a block to the last of all.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .folding import fold

_BLOCK = 1024


def layer_errors(
    weight_OI: Tensor, approximations: Mapping[str, Tensor], hessian_II: Tensor | None
) -> dict[str, float]:
    """`layer_error` of several approximations, the common work done once."""
    weight_OI = weight_OI.detach().double()
    whole = _energy(weight_OI, hessian_II)
    return {
        name: _energy(weight_OI - approximation_OI, hessian_II) / whole if whole else 0.0
        for name, approximation_OI in approximations.items()
    }


def layer_error(weight_OI: Tensor, approximation_OI: Tensor, hessian_II: Tensor | None) -> float:
    """Normalised squared error of the output: tr((W-Q) H (W-Q)^T) / tr(W H W^T); 0 if the layer gives only zeros.

    Without a Hessian the inputs are taken as uncorrelated and of equal size. Relative precision 1e-6 or better.
    Time: half a float64 product of (I, O) by (O, I), and as much for the denominator. Memory: three times the
    weight in float64.
    """
    return layer_errors(weight_OI, {"": approximation_OI}, hessian_II)[""]


def _energy(rows_OI: Tensor, hessian_II: Tensor | None) -> float:
    """The row times the Hessian times the row, summed over the rows."""
    if hessian_II is None:
        return float(fold(fold(rows_OI.square(), 1), 0))
    size_I = rows_OI.abs().amax(dim=0)
    # A sum of O products of two integers of so many bits does not exceed 2^53.
    bits = (53 - math.ceil(math.log2(len(rows_OI)))) // 2
    unit_I = torch.where(size_I > 0, size_I, 1.0) / 2.0**bits
    whole_OI = (rows_OI / unit_I).round_()
    total = rows_OI.new_zeros(())
    for start in range(0, len(unit_I), _BLOCK):
        block, onwards = slice(start, start + _BLOCK), slice(start, None)
        pairs_KL = whole_OI[:, block].T @ whole_OI[:, onwards]
        # Pairs with an input of a later block stand for their mirror images too.
        unit_L = unit_I[onwards].clone()
        unit_L[_BLOCK:] *= 2
        pairs_KL.mul_(hessian_II[block, onwards]).mul_(unit_L)
        total += fold(fold(pairs_KL, 1) * unit_I[block], 0)
    return float(total)
