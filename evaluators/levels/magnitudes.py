"""Errors of levels that are computed from weights, without any text.

Shapes: O outputs of a layer, I inputs of a layer, N weights of a layer.
"""

import torch
from torch import Tensor

from ...spaces.levels.labels import parse_label
from ...spaces.levels.layer_error import layer_error


def magnitude_error(weight_OI: Tensor, level_OI: Tensor) -> float:
    """Compute ||W - Q||^2 / ||W||^2, the squared change of a weight W at a level Q relative to the weight."""
    return layer_error(weight_OI, level_OI, None)


def lamp_error(weight_OI: Tensor, level_OI: Tensor, label: str) -> float:
    """Compute the sum of the LAMP scores of the weights that a level removes, and of the rounding of the others.

    The score of a weight is its square divided by the sum of the squares of all weights of its layer that are at least
    as large. Among layers pruned by magnitude, the smallest sum at a given sparsity is the choice that LAMP itself
    makes with one threshold for the scores of all layers. LAMP does not cover rounding. Where a level rounds, the
    square of a weight's change takes the place of the weight's square. Where it does not, changes that a pruner makes
    to surviving weights are not counted.

    Args:
        weight_OI: dense weight of the layer.
        level_OI: weight of the layer at the level.
        label: label of the level, which says whether the level rounds.

    References:
        LAMP (Lee et al., arXiv 2010.07611), which is named after this score.
    """
    weight_N, level_N = weight_OI.double().flatten(), level_OI.double().flatten()
    square_N, order_N = weight_N.square().sort(descending=True)
    larger_N = torch.empty_like(square_N)
    larger_N[order_N] = square_N.cumsum(0)
    rounded = parse_label(label).rounds
    change_N = (weight_N - level_N).square() * (rounded | (level_N == 0))
    return float((change_N / larger_N.clamp(min=torch.finfo(torch.float64).tiny)).sum())
