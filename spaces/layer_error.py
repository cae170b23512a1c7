"""How far a compressed layer's output is from the dense one's, exactly reproducible.

The sums are made of whole numbers that float64 holds exactly, so their order, and with it the number of threads
or the device, cannot change the result.

Shapes: O outputs, I inputs, R rows of a chunk of outputs.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

_ROWS = 1024


def layer_errors(
    weight_OI: Tensor, approximations: Mapping[str, Tensor], hessian_II: Tensor | None
) -> dict[str, float]:
    """`layer_error` of several approximations, the common work done once."""
    hessian = None if hessian_II is None else _Fixed(hessian_II)
    whole = _quadratic(weight_OI.detach().double(), hessian)
    errors = {}
    for name, approximation_OI in approximations.items():
        part = _quadratic(weight_OI.detach().double() - approximation_OI.double(), hessian)
        errors[name] = part / whole if whole else 0.0
    return errors


def layer_error(weight_OI: Tensor, approximation_OI: Tensor, hessian_II: Tensor | None) -> float:
    """Normalised squared error of the output: tr((W-Q) H (W-Q)^T) / tr(W H W^T); 0 if the layer gives only zeros.

    Without a Hessian the inputs are taken as uncorrelated and of equal size. Relative precision about 1e-5.
    Time: two float64 products of (O, I) by (I, I), and as many for the denominator.
    """
    return layer_errors(weight_OI, {"": approximation_OI}, hessian_II)[""]


class _Fixed:
    """A Hessian in fixed point: correlations as two integers, scaled by the roots of its diagonal."""

    def __init__(self, hessian_II: Tensor) -> None:
        scaled = hessian_II.to(torch.float64, copy=True)
        self.root = scaled.diagonal().clamp(min=0).sqrt()
        safe = torch.where(self.root > 0, self.root, 1.0)
        scaled.div_(safe[:, None]).div_(safe)
        # A sum of I products of two such integers stays below 2^53.
        self.bits = (52 - math.ceil(math.log2(len(scaled)))) // 2
        scaled.mul_(2.0**self.bits)
        self.high = scaled.round()
        self.low = scaled.sub_(self.high).mul_(2.0**self.bits).round_()

    def quadratic(self, rows_RI: Tensor) -> Tensor:
        """The row times the Hessian times the row, for each row."""
        scaled = rows_RI * self.root
        size = scaled.abs().amax(dim=1, keepdim=True)
        whole = (scaled / torch.where(size > 0, size, 1.0) * 2.0**self.bits).round()
        product = whole @ self.high + (whole @ self.low) / 2.0**self.bits
        return _fold(whole * product) * (size[:, 0] / 2.0**self.bits).square() / 2.0**self.bits


def _quadratic(rows_OI: Tensor, hessian: _Fixed | None) -> float:
    chunks = [rows_OI[start : start + _ROWS] for start in range(0, len(rows_OI), _ROWS)]
    sums = [_fold(chunk.square()) if hessian is None else hessian.quadratic(chunk) for chunk in chunks]
    return math.fsum(value for chunk in sums for value in chunk.tolist())


def _fold(terms_RI: Tensor) -> Tensor:
    """Sum of each row by halving: one order on every machine."""
    width = 1 << (terms_RI.shape[1] - 1).bit_length()
    terms = torch.nn.functional.pad(terms_RI, (0, width - terms_RI.shape[1]))
    while width > 1:
        width //= 2
        terms = terms[:, :width] + terms[:, width:]
    return terms[:, 0]
