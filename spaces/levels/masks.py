"""Masks that choose which weights become zero, with exactly the number of zeros that a label names.

Shapes: O outputs, I inputs, R rows of N scores.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .labels import Pattern, Sparsity


def share(total: int, parts: int, start: int, stop: int) -> int:
    """Return how many of `total` items fall on parts `start..stop` if they are spread evenly over `parts` parts.

    The shares of parts that follow each other add up to `total` exactly.
    """
    return total * stop // parts - total * start // parts


def keep_largest(scores_RN: Tensor, zeros: int | Tensor) -> Tensor:
    """Return a mask (R, N) that is false at the smallest scores of each row.

    Args:
        scores_RN: scores of the weights; of equal scores the earlier one is the smaller one.
        zeros: number of false entries in a row, one for all rows or one for each row (R, 1).
    """
    order = scores_RN.argsort(dim=1, stable=True)
    ranks = torch.arange(scores_RN.shape[1], device=scores_RN.device).expand_as(order)
    return torch.empty_like(order, dtype=torch.bool).scatter_(1, order, ranks >= zeros)


def keep_pattern(scores_OI: Tensor, pattern: Pattern) -> Tensor:
    """Return a mask (O, I) that is true at the `pattern.keep` largest scores in each `pattern.of` consecutive inputs."""
    scores = scores_OI.reshape(-1, pattern.of)
    return keep_largest(scores, pattern.of - pattern.keep).view(scores_OI.shape)


def magnitude(weight_OI: Tensor, hessian_II: Tensor | None, sparsity: Sparsity) -> Tensor:
    """Return a mask (O, I) that is true where |w| is largest in the layer, or in each group of a pattern.

    The Hessian is not read.
    """
    del hessian_II
    scores = weight_OI.abs()
    if isinstance(sparsity, Pattern):
        return keep_pattern(scores, sparsity)
    return keep_largest(scores.reshape(1, -1), sparsity.zeros(scores.numel())).view(scores.shape)


def wanda(weight_OI: Tensor, hessian_II: Tensor | None, sparsity: Sparsity) -> Tensor:
    """Return a mask (O, I) that is true where |w| times the norm of its input is largest.

    Weights compete in the row of an output, or in a group of a pattern.

    Args:
        weight_OI: weight of the layer.
        hessian_II: sum or mean of x x^T over calibration inputs; only its diagonal is read.
        sparsity: number of zeros, or a pattern.

    References:
        Sun et al., A Simple and Effective Pruning Approach for Large Language Models, eq. 1.
    """
    assert hessian_II is not None
    scores = weight_OI.abs() * hessian_II.diagonal().float().clamp(min=0).sqrt()
    if isinstance(sparsity, Pattern):
        return keep_pattern(scores, sparsity)
    rows, total = len(scores), sparsity.zeros(scores.numel())
    zeros = [share(total, rows, row, row + 1) for row in range(rows)]
    return keep_largest(scores, torch.tensor(zeros, device=scores.device)[:, None])


@dataclass(frozen=True)
class Pruner:
    """A method of pruning that chooses the mask before the weights are solved.

    Attributes:
        mask: function of weight (O, I), Hessian (I, I) or None, and sparsity that returns the mask (O, I).
        needs_hessian: whether `mask` cannot do without a Hessian.
    """

    mask: Callable[[Tensor, Tensor | None, Sparsity], Tensor]
    needs_hessian: bool


PRUNERS: dict[str, Pruner | None] = {
    "sparsegpt": None,
    "wanda": Pruner(wanda, needs_hessian=True),
    "magnitude": Pruner(magnitude, needs_hessian=False),
}
"""Methods of pruning, by the name in `BuilderConfig`; None for SparseGPT, whose masks the solver chooses."""
