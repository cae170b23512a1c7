"""Factorization of the damped inverse Hessian of a layer's inputs.

Shapes: I inputs.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_LARGEST_DAMP = 1.0


@dataclass(frozen=True, eq=False)
class Factor:
    """The damped inverse Hessian as U^T U with U upper triangular, computed once per layer.

    Attributes:
        rows: rows of U divided by their diagonal entries, (I, I); row i says by how much each later column changes per
            unit of error in column i.
        diagonal: squares U[i, i]^2, (I,); entry i is the inverse Hessian's entry for column i once all earlier
            columns are fixed. It is infinite for an input that is always zero.
    """

    rows: Tensor
    diagonal: Tensor


def factorize(hessian_II: Tensor, damp: float) -> Factor:
    """Factorize the inverse of a Hessian whose diagonal is raised by `damp` times its mean.

    `damp` grows tenfold, up to 1, until the damped Hessian can be factorized. The computation is in float64, because
    activations with outliers make Hessians that float32 factorizes only with more damping. For an input that is always
    zero, the damped Hessian has no entry but the damping on its diagonal. The weights of such an input are rounded to
    the nearest value, pruned before all others, and do not compensate the errors of other columns.

    Args:
        hessian_II: sum or mean of x x^T over calibration inputs, (I, I).
        damp: fraction of the mean diagonal that is added to the diagonal.

    Raises:
        ValueError: the Hessian is not positive definite even with its whole mean diagonal added.
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
