"""Column by column compression with error compensation: GPTQ, SparseGPT and both in one pass.

Each column (one input of every output) is replaced by what will be stored, and the columns still open take over
its error as the layer's Hessian says (optimal brain surgeon). Updates of columns further away are made once per
block of columns, which changes the speed and not the definition.

Shapes: O outputs, I inputs, G groups of inputs, K inputs of a group or block.

References:
    Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, alg. 1.
    Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, alg. 1.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .grids import ScaleRule, decode, encode, fit
from .labels import Grid, Pattern, Sparsity
from .masks import keep_largest, keep_pattern, share

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


@dataclass(frozen=True, eq=False)
class Solution:
    """A compressed layer before it is packed.

    Attributes:
        stored: (O, I): codes, uint8 in [0, 2^bits), if there is a grid; else values in the storage type.
        mask: (O, I), true where a weight survives, or None.
        scales: (O, G), float32, or None.
        zeros: (O, G), float32, or None.
    """

    stored: Tensor
    mask: Tensor | None = None
    scales: Tensor | None = None
    zeros: Tensor | None = None


def round_to_nearest(
    weight_OI: Tensor, grid: Grid, rule: ScaleRule, dtype: torch.dtype, mask_OI: Tensor | None = None
) -> Solution:
    """Every weight to its nearest code, nothing compensated; masked weights are zero."""
    work_IO = (weight_OI if mask_OI is None else weight_OI * mask_OI).T.contiguous()
    quantizer = _Quantizer(grid, rule, dtype, work_IO)
    for start in range(0, len(work_IO), quantizer.group):
        quantizer.begin(start, work_IO[start : start + quantizer.group])
        quantizer.quantize(slice(start, start + quantizer.group), work_IO[start : start + quantizer.group])
    return quantizer.solution(mask_OI)


def solve(
    weight_OI: Tensor,
    factor: Factor,
    *,
    dtype: torch.dtype,
    column_block: int,
    sparsity: Sparsity | None = None,
    mask_OI: Tensor | None = None,
    grid: Grid | None = None,
    rule: ScaleRule = "minmax",
) -> Solution:
    """Compress one layer with error compensation.

    Errors are those of the values as stored, so what the storage type rounds away is compensated as well.

    Args:
        weight_OI: float32.
        factor: of the same layer's Hessian.
        dtype: 16-bit storage type.
        column_block: columns that share one late update, and in which an unstructured mask is chosen.
        sparsity: prune, choosing the mask on the way by w^2 / U[i, i]^2 of the updated weights: at the start of
            each block with that block's even share of the zeros, or of each group of a pattern.
        mask_OI: prune what is false here instead.
        grid: quantise the (surviving) weights, with the scales of a group taken from its updated weights when
            its first column is reached.
        rule: how scales are chosen.
    """
    work_IO = weight_OI.T.clone(memory_format=torch.contiguous_format)
    values_IO = torch.empty_like(work_IO, dtype=dtype)
    quantizer = _Quantizer(grid, rule, dtype, work_IO) if grid else None
    mask_IO = torch.ones_like(work_IO, dtype=torch.bool) if mask_OI is None else mask_OI.T.clone()
    masked = sparsity is not None or mask_OI is not None
    period = sparsity.of if isinstance(sparsity, Pattern) else column_block
    periods = [period] * (sparsity is not None) + ([quantizer.group] if quantizer else [])
    for start, stop in _blocks(len(work_IO), column_block, periods):
        errors_KO = torch.empty_like(work_IO[start:stop])
        for i in range(start, stop):
            if sparsity is not None and i % period == 0:
                mask_IO[i : i + period] = _choose(work_IO, factor, sparsity, slice(i, i + period))
            if quantizer and i % quantizer.group == 0:
                ahead = slice(i, i + quantizer.group)
                quantizer.begin(i, work_IO[ahead] * mask_IO[ahead])
            value = quantizer.quantize(i, work_IO[i]) if quantizer else work_IO[i].to(dtype).float()
            if masked:
                value *= mask_IO[i]
            if not quantizer:
                values_IO[i] = value
            error = torch.sub(work_IO[i], value, out=errors_KO[i - start])
            work_IO[i + 1 : stop].addcmul_(factor.rows[i, i + 1 : stop, None], error, value=-1)
        work_IO[stop:].addmm_(factor.rows[start:stop, stop:].T, errors_KO, alpha=-1)
    mask = mask_IO.T if masked else None
    return quantizer.solution(mask) if quantizer else Solution(values_IO.T, mask)


def _blocks(width: int, limit: int, periods: list[int]) -> Iterator[tuple[int, int]]:
    """Blocks of at most `limit` columns in which no period both starts late and ends outside.

    So whenever a group or mask is decided, all of its columns are up to date: it starts a block or lies in it.
    """
    start = 0
    while start < width:
        stop = min(start + limit, width)
        while stop < width and (
            cuts := [stop - stop % p for p in periods if stop % p and stop - stop % p > start]
        ):
            stop = min(cuts)
        yield start, stop
        start = stop


def _choose(work_IO: Tensor, factor: Factor, sparsity: Sparsity, columns: slice) -> Tensor:
    """Which of these columns' weights survive, (K, O)."""
    scores_OK = (work_IO[columns].square() / factor.diagonal[columns, None]).T
    if isinstance(sparsity, Pattern):
        return keep_pattern(scores_OK, sparsity).T
    zeros = share(
        sparsity.zeros(work_IO.numel()), len(work_IO), columns.start, min(columns.stop, len(work_IO))
    )
    counts = torch.tensor([zeros], device=work_IO.device)
    return keep_largest(scores_OK.reshape(1, -1), counts).view(scores_OK.shape).T


class _Quantizer:
    """Codes and scales of a layer, filled in group by group."""

    def __init__(self, grid: Grid, rule: ScaleRule, dtype: torch.dtype, work_IO: Tensor) -> None:
        self.grid, self.rule, self.dtype = grid, rule, dtype
        self.group = grid.group or len(work_IO)
        groups, outputs = grid.groups(len(work_IO)), work_IO.shape[1]
        self.codes = torch.empty(work_IO.shape, dtype=torch.uint8, device=work_IO.device)
        self.scales = torch.empty((groups, outputs), device=work_IO.device)
        self.zeros = None if grid.symmetric else torch.empty_like(self.scales)
        self.scale, self.zero = self.scales[0], None if self.zeros is None else self.zeros[0]

    def begin(self, start: int, weight_KO: Tensor) -> None:
        """Fix the scale of the group whose first column is `start` from its weights."""
        self.scale, self.zero = fit(weight_KO, self.grid, self.rule, self.dtype)
        self.scales[start // self.group] = self.scale
        if self.zeros is not None and self.zero is not None:
            self.zeros[start // self.group] = self.zero

    def quantize(self, columns: int | slice, weight: Tensor) -> Tensor:
        """Note the codes of some columns of the current group; their values as stored."""
        codes = encode(weight, self.scale, self.zero, self.grid)
        self.codes[columns] = codes.to(torch.uint8)
        return decode(codes, self.scale, self.zero, self.grid).to(self.dtype).float()

    def solution(self, mask_OI: Tensor | None) -> Solution:
        """The layer's codes, masked ones included: they are not packed."""
        return Solution(self.codes.T, mask_OI, self.scales.T, None if self.zeros is None else self.zeros.T)
