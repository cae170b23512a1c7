"""Integer grids of groups of weights: the choice of their scales and zero points, and rounding onto them.

Weights are handled transposed, (..., K, O), because the solver goes through the inputs in order. Every operation is
elementwise, a minimum or maximum, or a `fold`, so the bits of an output do not depend on the other outputs.

Shapes: O outputs of one layer at one label or of several side by side, I inputs, K inputs of one group, G groups of a
layer, S tried shrinks, and `...` any leading dimensions, for example of groups.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .folding import fold
from .labels import Grid
from .packed import Solution

ScaleRule = Literal["minmax", "mse"]
"""Rule for scales: cover the whole range of a group, or shrink the range for the least squared error."""

_SHRINKS = tuple(1 - i / 40 for i in range(29))
"""Factors by which the range of a group is shrunk, from 1 to 0.3."""

_TRIED_AT_ONCE = 1 << 24
"""Most rounded weights, counted once per shrink, that `fit` holds at once."""

_ROUNDED_AT_ONCE = 1 << 22
"""Most weights that `round_to_nearest` rounds at once."""


class Placement(NamedTuple):
    """The grid of each output in one or more groups: all whole numbers from `low` to `high`, times `scale`.

    The zero point is `-low`, the code in [0, 2^bits) that stands for a weight of zero.

    Attributes:
        scale: distance between neighbouring values on the grid, (..., O).
        low: smallest whole number on the grid, (..., O).
        high: largest whole number on the grid, (..., O).
    """

    scale: Tensor
    low: Tensor
    high: Tensor

    def whole(self, weight: Tensor, out: Tensor | None = None) -> Tensor:
        """Round weights to the nearest whole numbers on the grid, as floats; the code is this number minus `low`."""
        return torch.div(weight, self.scale, out=out).round_().clamp_(self.low, self.high)

    def spread(self) -> "Placement":
        """Return the placement with shape (..., 1, O), for weights of shape (..., K, O)."""
        return Placement(*(part.unsqueeze(-2) for part in self))


def shrinks_of(rule: ScaleRule, device: torch.device) -> Tensor:
    """Return the factors (S,) that `fit` tries: 1 for `minmax`; 1 and 28 smaller ones down to 0.3 for `mse`."""
    return torch.tensor(_SHRINKS if rule == "mse" else _SHRINKS[:1], device=device)


def fit(weight: Tensor, steps: Tensor, symmetric: bool, shrinks_S: Tensor, dtype: torch.dtype) -> Placement:
    """Choose the grid of each output in a group of inputs; scales are rounded to the type they are stored in.

    The scale of a symmetric grid is absmax / ((2^bits - 1) / 2), the convention of compressed-tensors. An asymmetric
    grid divides the range from the smallest to the largest weight, extended to include 0, into 2^bits - 1 steps, with
    a whole zero point, as GPTQ does. If several shrinks of that range are given, each output takes the first one with
    the least squared error.

    Args:
        weight: weights of the group, (..., K, O).
        steps: 2^bits - 1 of each output, (O,) or one for all.
        symmetric: whether the grid is symmetric.
        shrinks_S: factors by which the range is shrunk, as `shrinks_of` returns them.
        dtype: 16-bit type in which scales are stored.

    Returns:
        The placement, each of its tensors (..., O).
    """
    factors = shrinks_S.view(-1, *[1] * (weight.ndim - 1))
    low, high = weight.amin(-2).clamp(max=0) * factors, weight.amax(-2).clamp(min=0) * factors
    tried = _place(low, high, steps, symmetric, dtype)
    if len(shrinks_S) == 1:
        return Placement(*(part[0] for part in tried))
    together = max(1, _TRIED_AT_ONCE // weight.numel())
    several = zip(*(torch.split(part, together) for part in tried), strict=True)
    errors = torch.cat([_squared_error(weight, Placement(*parts)) for parts in several])
    best = errors.min(0, keepdim=True).indices
    return Placement(*(part.gather(0, best)[0] for part in tried))


def round_to_nearest(
    weight_OI: Tensor, grid: Grid, rule: ScaleRule, dtype: torch.dtype, mask_OI: Tensor | None = None
) -> Solution:
    """Round every weight of a layer to the nearest value on its group's grid, without error compensation.

    Args:
        weight_OI: weight of the layer in float32.
        grid: bits, group size and symmetry.
        rule: rule by which scales are chosen.
        dtype: 16-bit type in which scales are stored.
        mask_OI: mask that is true where a weight survives; the others count as zero. None keeps all weights.
    """
    work_IO = (weight_OI if mask_OI is None else weight_OI * mask_OI).T.contiguous()
    inputs, outputs = work_IO.shape
    group = grid.group or inputs
    # Zero is on every grid and in every range, so filling up the last group with zeros does not change its grid.
    work_GKO = pad(work_IO, (0, 0, 0, -inputs % group)).reshape(-1, group, outputs)
    steps = torch.tensor(2.0**grid.bits - 1, device=work_IO.device)
    shrinks_S = shrinks_of(rule, work_IO.device)
    codes, scales, lows = [], [], []
    for chunk_GKO in torch.split(work_GKO, max(1, _ROUNDED_AT_ONCE // (group * outputs))):
        place = fit(chunk_GKO, steps, grid.symmetric, shrinks_S, dtype)
        whole_GKO = place.spread().whole(chunk_GKO)
        codes.append((whole_GKO - place.spread().low).to(torch.uint8).flatten(0, 1))
        scales.append(place.scale)
        lows.append(place.low)
    zeros_OG = None if grid.symmetric else -torch.cat(lows).T
    return Solution(torch.cat(codes)[:inputs].T, mask_OI, torch.cat(scales).T, zeros_OG)


Quantizer = Callable[[Tensor, Grid, ScaleRule, torch.dtype, Tensor | None], Solution]
"""A function of weight (O, I), grid, rule for scales, 16-bit type of scales, and mask (O, I) or None."""

QUANTIZERS: dict[str, Quantizer | None] = {"gptq": None, "rtn": round_to_nearest}
"""Methods of rounding, by the name in `BuilderConfig`; None for GPTQ, with which the solver rounds."""


def _place(low: Tensor, high: Tensor, steps: Tensor, symmetric: bool, dtype: torch.dtype) -> Placement:
    """Return the grid that covers the range from `low` to `high`."""
    if symmetric:
        scale = _storable(torch.maximum(-low, high) / (steps / 2), dtype)
        zero = ((steps + 1) / 2).expand_as(scale)
    else:
        scale = _storable((high - low) / steps, dtype)
        zero = torch.round(-low / scale).clamp(steps.new_zeros(()), steps)
    return Placement(scale, -zero, steps - zero)


def _storable(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Round scales to `dtype`, but never to 0 or infinity, because a group of zeros needs a scale too."""
    least = 2.0**-24 if dtype == torch.float16 else torch.finfo(dtype).tiny
    return scale.clamp(least, torch.finfo(dtype).max).to(dtype).float()


def _squared_error(weight: Tensor, tried: Placement) -> Tensor:
    """Return the squared rounding error of a weight (..., K, O) on S placements, summed over K, (S, ..., O)."""
    spread = tried.spread()
    return fold(spread.whole(weight).mul_(spread.scale).sub_(weight).square_(), -2)
