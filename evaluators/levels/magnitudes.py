"""Errors of levels from weights alone.

Shapes: O outputs, I inputs, N weights of a layer.
"""

import torch
from torch import Tensor

from ...spaces.levels.labels import parse_label
from ...spaces.levels.layer_error import layer_error


def magnitude_error(weight_OI: Tensor, level_OI: Tensor) -> float:
    """Energy of what a level changes, relative to the weight's: ||W - Q||^2 / ||W||^2."""
    return layer_error(weight_OI, level_OI, None)


def lamp_error(weight_OI: Tensor, level_OI: Tensor, label: str) -> float:
    """Sum of the LAMP scores of the weights that a level removes, with the rounding of the others.

    The score of a weight is its square relative to the sum of the squares of all weights of its layer that are at
    least as large. Among layers pruned by magnitude, the smallest sum at a given sparsity is LAMP's own choice: one
    threshold for the scores of all layers. LAMP knows no rounding; where a level has a grid, the square of a
    weight's change stands for the weight's square. What a pruner does to surviving weights is not counted.

    References:
        LAMP (Lee et al., arXiv 2010.07611), the score that gives it its name.
    """
    weight_N, level_N = weight_OI.double().flatten(), level_OI.double().flatten()
    square_N, order_N = weight_N.square().sort(descending=True)
    larger_N = torch.empty_like(square_N)
    larger_N[order_N] = square_N.cumsum(0)
    rounded = parse_label(label).rounds
    change_N = (weight_N - level_N).square() * (rounded | (level_N == 0))
    return float((change_N / larger_N.clamp(min=torch.finfo(torch.float64).tiny)).sum())
