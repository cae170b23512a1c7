"""Which weights to zero, with exactly the number of zeros that a label names.

Shapes: O outputs, I inputs, R rows of N scores.
"""

import torch
from torch import Tensor

from .labels import Pattern, Sparsity


def share(total: int, parts: int, start: int, stop: int) -> int:
    """How many of `total`, spread evenly over `parts`, fall on parts `start..stop`; the shares add up exactly."""
    return total * stop // parts - total * start // parts


def keep_largest(scores_RN: Tensor, zeros: int | Tensor) -> Tensor:
    """False at the `zeros` smallest scores of each row (one number, or one a row: (R, 1)), ties by position."""
    order = scores_RN.argsort(dim=1, stable=True)
    ranks = torch.arange(scores_RN.shape[1], device=scores_RN.device).expand_as(order)
    return torch.empty_like(order, dtype=torch.bool).scatter_(1, order, ranks >= zeros)


def keep_pattern(scores_OI: Tensor, pattern: Pattern) -> Tensor:
    """True at the largest `keep` scores in each `of` consecutive inputs."""
    scores = scores_OI.reshape(-1, pattern.of)
    return keep_largest(scores, pattern.of - pattern.keep).view(scores_OI.shape)


def magnitude(weight_OI: Tensor, sparsity: Sparsity) -> Tensor:
    """True where |w| is largest in the layer (or in each group of a pattern)."""
    scores = weight_OI.abs()
    if isinstance(sparsity, Pattern):
        return keep_pattern(scores, sparsity)
    return keep_largest(scores.reshape(1, -1), sparsity.zeros(scores.numel())).view(scores.shape)


def wanda(weight_OI: Tensor, hessian_II: Tensor, sparsity: Sparsity) -> Tensor:
    """True where |w| times the norm of its input is largest in the output's row (or group of a pattern).

    References:
        Sun et al., A Simple and Effective Pruning Approach for Large Language Models, eq. 1.
    """
    scores = weight_OI.abs() * hessian_II.diagonal().float().clamp(min=0).sqrt()
    if isinstance(sparsity, Pattern):
        return keep_pattern(scores, sparsity)
    rows, total = len(scores), sparsity.zeros(scores.numel())
    zeros = [share(total, rows, row, row + 1) for row in range(rows)]
    return keep_largest(scores, torch.tensor(zeros, device=scores.device)[:, None])
