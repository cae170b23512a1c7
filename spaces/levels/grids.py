"""Integer grids of groups of weights: where they lie, and rounding onto them.

Shapes: O outputs, of one layer at one label or of several side by side; I inputs; K inputs of one group; G groups of
a layer; S shrinks; groups side by side may come first (...). Groups are handled transposed, (..., K, O), because the
solver walks over inputs. Every operation is elementwise or a fold, so an output's bits do not depend on what lies
beside it.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .folding import fold
from .labels import Grid
from .packed import Solution

ScaleRule = Literal["minmax", "mse"]
_SHRINKS = tuple(1 - i / 40 for i in range(29))
_TRIED_AT_ONCE = 1 << 24
_ROUNDED_AT_ONCE = 1 << 22


class Placement(NamedTuple):
    """Where the grid of each output lies: whole numbers from `low` to `high`, times `scale`.

    `-low` is the zero point: the code, in [0, 2^bits), that stands for a weight of zero.
    """

    scale: Tensor
    low: Tensor
    high: Tensor

    def whole(self, weight: Tensor, out: Tensor | None = None) -> Tensor:
        """The nearest whole numbers of the grid, as floats; codes are these minus `low`."""
        return torch.div(weight, self.scale, out=out).round_().clamp_(self.low, self.high)

    def spread(self) -> "Placement":
        """For the weights of a group's columns, (..., K, O)."""
        return Placement(*(part.unsqueeze(-2) for part in self))


def shrinks_of(rule: ScaleRule, device: torch.device) -> Tensor:
    """What `fit` tries, (S,): `minmax` covers a group's whole range, `mse` tries it and 28 below, down to 0.3."""
    return torch.tensor(_SHRINKS if rule == "mse" else _SHRINKS[:1], device=device)


def fit(weight: Tensor, steps: Tensor, symmetric: bool, shrinks_S: Tensor, dtype: torch.dtype) -> Placement:
    """Place each output's grid, its scale already rounded to what `dtype` can store.

    Symmetric: absmax / ((2^bits - 1) / 2), compressed-tensors' convention. Asymmetric: the range from the
    smallest to the largest weight, 0 included, over 2^bits - 1 steps, with a whole zero point, as GPTQ does.
    Of several shrinks of that range, the first of least squared error is taken for each output.

    Args:
        weight: (..., K, O).
        steps: 2^bits - 1 of each output, (O,).
        symmetric: the kind of grid.
        shrinks_S: factors by which the range is shrunk, as `shrinks_of` gives them.
        dtype: 16-bit type of scales.

    Returns:
        Scale, low and high, each (..., O).
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
    """Every weight to its nearest code, nothing compensated; masked weights are zero, and are not packed."""
    work_IO = (weight_OI if mask_OI is None else weight_OI * mask_OI).T.contiguous()
    inputs, outputs = work_IO.shape
    group = grid.group or inputs
    # Zeros are on every grid, so filling up the last group changes nothing.
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


def _place(low: Tensor, high: Tensor, steps: Tensor, symmetric: bool, dtype: torch.dtype) -> Placement:
    if symmetric:
        scale = _storable(torch.maximum(-low, high) / (steps / 2), dtype)
        zero = ((steps + 1) / 2).expand_as(scale)
    else:
        scale = _storable((high - low) / steps, dtype)
        zero = torch.round(-low / scale).clamp(steps.new_zeros(()), steps)
    return Placement(scale, -zero, steps - zero)


def _storable(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded to `dtype` but never to 0 or infinity: a group of zeros needs some scale."""
    least = 2.0**-24 if dtype == torch.float16 else torch.finfo(dtype).tiny
    return scale.clamp(least, torch.finfo(dtype).max).to(dtype).float()


def _squared_error(weight: Tensor, tried: Placement) -> Tensor:
    """Squared rounding error of a weight (..., K, O) on each of S placements, summed over K: (S, ..., O)."""
    spread = tried.spread()
    return fold(spread.whole(weight).mul_(spread.scale).sub_(weight).square_(), -2)
