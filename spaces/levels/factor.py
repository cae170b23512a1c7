"""The damped inverse Hessian of a layer's inputs, factorized.

Shapes: I inputs.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_LARGEST_DAMP = 1.0


@dataclass(frozen=True, eq=False)
class Factor:
    """The damped inverse Hessian as U^T U with U upper triangular, made once per layer.

    Attributes:
        rows: (I, I), row i of U over U[i, i]: how an error in column i moves the columns after it.
        diagonal: (I,), U[i, i]^2: the inverse Hessian's entry for column i once all before it are fixed;
            infinite for an input that is always zero.
    """

    rows: Tensor
    diagonal: Tensor


def factorize(hessian_II: Tensor, damp: float) -> Factor:
    """Add `damp` times the mean of the diagonal, ten times more while that is not enough, and factorize.

    In float64: activations with outliers make Hessians that float32 factorizes only with more damping. An input
    that is always zero is left with the damping alone: its weights are rounded to the nearest, pruned before all
    others, and take no other column's error.

    Raises:
        ValueError: the Hessian is not positive definite even with its mean diagonal added.
    """
    hessian = hessian_II.double().flip(0, 1)
    mean = float(hessian.diagonal().mean()) or 1.0
    while True:
        damped = hessian.clone()
        damped.diagonal().add_(damp * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed and bool(lower.isfinite().all()):
            break
        if damp >= _LARGEST_DAMP:
            raise ValueError(
                f"the Hessian is not positive definite with {damp:g} of its mean diagonal added; "
                "use more calibration tokens or a larger damp"
            )
        damp = min(10 * damp, _LARGEST_DAMP)
    # H = R R^T with R upper triangular, so U is the inverse of R; no inverse Hessian is ever formed.
    eye = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    upper = torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)
    diagonal = upper.diagonal()
    squares = diagonal.square().masked_fill(hessian_II.diagonal() == 0, math.inf)
    return Factor((upper / diagonal[:, None]).float(), squares.float())
