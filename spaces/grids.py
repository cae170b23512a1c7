"""Integer grids of groups of weights: where they lie, and rounding onto them.

Shapes: O outputs, K inputs of one group, I inputs, G groups. Groups are handled transposed, (K, O), because the
solver walks over inputs.
"""

from typing import Literal

import torch
from torch import Tensor

from .labels import Grid

ScaleRule = Literal["minmax", "mse"]
_SHRINK = tuple(1 - i / 40 for i in range(29))


def fit(weight_KO: Tensor, grid: Grid, rule: ScaleRule, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point, each (O,), of one group, already rounded to what `dtype` can store.

    Symmetric: absmax / ((2^bits - 1) / 2), compressed-tensors' convention. Asymmetric: the range from the
    smallest to the largest weight, 0 included, over 2^bits - 1 steps, with a whole zero point, as GPTQ does.
    `mse` tries 29 shrinks of that range down to 0.3 and keeps, per output, the one of least squared error.
    """
    low, high = weight_KO.amin(0).clamp(max=0), weight_KO.amax(0).clamp(min=0)
    best_scale, best_zero = _place(low, high, grid, dtype)
    if rule == "minmax":
        return best_scale, best_zero
    least = _squared_error(weight_KO, best_scale, best_zero, grid)
    for shrink in _SHRINK[1:]:
        scale, zero = _place(low * shrink, high * shrink, grid, dtype)
        error = _squared_error(weight_KO, scale, zero, grid)
        better = error < least
        least = torch.where(better, error, least)
        best_scale = torch.where(better, scale, best_scale)
        if zero is not None and best_zero is not None:
            best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero


def _place(low: Tensor, high: Tensor, grid: Grid, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    steps = 2**grid.bits - 1
    if grid.symmetric:
        return _storable(torch.maximum(-low, high) / (steps / 2), dtype), None
    scale = _storable((high - low) / steps, dtype)
    return scale, torch.round(-low / scale).clamp(0, steps)


def _storable(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded to `dtype` but never to 0 or infinity: a group of zeros needs some scale."""
    least = 2.0**-24 if dtype == torch.float16 else torch.finfo(dtype).tiny
    return scale.clamp(least, torch.finfo(dtype).max).to(dtype).float()


def _squared_error(weight_KO: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid) -> Tensor:
    return (decode(encode(weight_KO, scale, zero, grid), scale, zero, grid) - weight_KO).square_().sum(0)


def encode(weight: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid) -> Tensor:
    """The nearest codes in [0, 2^bits), as floats; symmetric ones have 2^(bits-1) added."""
    offset = 2 ** (grid.bits - 1) if zero is None else zero
    return (weight / scale).round_().add_(offset).clamp_(0, 2**grid.bits - 1)


def decode(codes: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid) -> Tensor:
    """The weights, in float32, that codes of `encode` stand for."""
    return (codes - (2 ** (grid.bits - 1) if zero is None else zero)) * scale
