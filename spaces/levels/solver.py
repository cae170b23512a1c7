"""Column by column compression with error compensation: GPTQ, SparseGPT and both in one pass.

Each column (one input of every output) is replaced by what will be stored, and the columns still open take over
its error as the layer's Hessian says (optimal brain surgeon). Updates of columns further away are made once per
block of columns, which changes the speed and not the definition.

Outputs know nothing of each other but for unstructured masks. So lanes (a layer at a label) that read the same
inputs are walked side by side, their outputs in one wide row: what is done to a column is elementwise and launched
once for all of them. The late updates, matrix products whose bits may depend on their width, are made for each
lane apart in its own memory. So a lane's bits do not depend on its company.

Shapes: O outputs of a lane, N outputs of all lanes together, I inputs, G groups of inputs, K columns of a block,
M columns from the start of a block that are decided on in it (more than K where a group or pattern is longer).

References:
    Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, alg. 1.
    Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, alg. 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .cuda_graphs import Replays
from .factor import Factor
from .grids import Placement, ScaleRule, fit, shrinks_of
from .labels import Grid, Pattern, Sparsity
from .masks import keep_largest, keep_pattern, share
from .packed import Solution

_TOGETHER = 1 << 28
"""Weights that are walked together: wide enough to hide the launches, 1 GiB of float32."""


@dataclass(frozen=True, eq=False)
class Lane:
    """One layer at one label, to be compressed with error compensation.

    Attributes:
        weight_OI: the layer's weight in float32.
        sparsity: prune, choosing the mask on the way by w^2 / U[i, i]^2 of the updated weights: at the start of
            each block with that block's even share of the zeros, or of each group of a pattern.
        mask_OI: prune what is false here instead.
        grid: quantise the (surviving) weights, with the scales of a group taken from its updated weights when
            its first column is reached.
    """

    weight_OI: Tensor
    sparsity: Sparsity | None = None
    mask_OI: Tensor | None = None
    grid: Grid | None = None


@dataclass(frozen=True)
class Method:
    """How all lanes are solved.

    Attributes:
        dtype: 16-bit storage type. Errors are those of the values as stored, so what it rounds away is
            compensated as well.
        column_block: columns that share one late update, and in which an unstructured mask is chosen.
        rule: how scales are chosen.
    """

    dtype: torch.dtype
    column_block: int
    rule: ScaleRule = "minmax"


def solve(lanes: Sequence[Lane], factor: Factor, method: Method, replays: Replays) -> list[Solution]:
    """Compress lanes of layers that read the same inputs; each one's bits are those it has alone.

    Args:
        lanes: layers with the same number of inputs, on the same device.
        factor: factorised inverse Hessian of their inputs.
        method: width of a block of columns, and other settings.
        replays: runs what is done inside a block of columns.
    """
    walks: dict[_Kind, list[list[int]]] = {}
    for number, lane in enumerate(lanes):
        walk = walks.setdefault(_Kind.of(lane, method), [[]])
        if walk[-1] and sum(lanes[i].weight_OI.numel() for i in [*walk[-1], number]) > _TOGETHER:
            walk.append([])
        walk[-1].append(number)
    solutions: dict[int, Solution] = {}
    for kind, walk in walks.items():
        for numbers in walk:
            together = _Walk(kind, [lanes[i] for i in numbers], factor, method, replays)
            solutions |= zip(numbers, together.run(), strict=True)
    return [solutions[number] for number in range(len(lanes))]


@dataclass(frozen=True)
class _Kind:
    """What lanes have in common that are walked side by side; bits and the number of zeros may differ.

    Attributes:
        group: columns that share a scale; 0 without a grid.
        symmetric: the kind of grid.
        period: columns whose mask is chosen together; 0 if none is chosen.
        pattern: how it is chosen in a block; None if it is unstructured (chosen before) or not chosen.
        masked: whether some weights are zero.
    """

    group: int
    symmetric: bool
    period: int
    pattern: Pattern | None
    masked: bool

    @classmethod
    def of(cls, lane: Lane, method: Method) -> "_Kind":
        grid, sparsity = lane.grid, lane.sparsity
        pattern = sparsity if isinstance(sparsity, Pattern) else None
        return cls(
            group=(grid.group or lane.weight_OI.shape[1]) if grid else 0,
            symmetric=grid is not None and grid.symmetric,
            period=pattern.of if pattern else method.column_block if sparsity else 0,
            pattern=pattern,
            masked=sparsity is not None or lane.mask_OI is not None,
        )

    def blocks(self, width: int, limit: int) -> Iterator[tuple[int, int]]:
        """Blocks of at most `limit` columns in which no period both starts late and ends outside.

        So whenever a group or mask is decided, all of its columns are up to date: it starts a block or lies in
        it. An unstructured mask's period always starts a block.
        """
        periods = [period for period in (self.group, self.period) if period]
        start = 0
        while start < width:
            stop = min(start + limit, width)
            if self.period and self.pattern is None:
                stop = min(stop, start - start % self.period + self.period)
            while stop < width and (
                cuts := [stop - stop % p for p in periods if stop % p and stop - stop % p > start]
            ):
                stop = min(cuts)
            yield start, stop
            start = stop


class _Walk:
    """Lanes of one kind, solved side by side."""

    def __init__(
        self, kind: _Kind, lanes: Sequence[Lane], factor: Factor, method: Method, replays: Replays
    ) -> None:
        self.kind, self.lanes, self.factor, self.method, self.replays = kind, lanes, factor, method, replays
        self.widths = [len(lane.weight_OI) for lane in lanes]
        # A lane's own memory, so that its late updates are the same products alone and in company.
        self.work_IO = [lane.weight_OI.T.clone(memory_format=torch.contiguous_format) for lane in lanes]
        inputs, outputs, device = len(self.work_IO[0]), sum(self.widths), self.work_IO[0].device
        stored = torch.uint8 if kind.group else method.dtype
        self.stored_IN = torch.empty((inputs, outputs), dtype=stored, device=device)
        masks = [lane.mask_OI.T for lane in lanes if lane.mask_OI is not None]
        shape = (inputs, outputs if kind.masked else 1)
        self.mask_IN = (
            torch.cat(masks, dim=1) if masks else torch.ones(shape, dtype=torch.bool, device=device)
        )
        groups = -(-inputs // kind.group) if kind.group else 1
        self.scales_GN = torch.empty((groups, outputs), device=device)
        self.lows_GN = torch.empty_like(self.scales_GN)
        steps = torch.tensor([2.0**lane.grid.bits - 1 if lane.grid else 0 for lane in lanes])
        self.steps_N = steps.repeat_interleave(torch.tensor(self.widths)).to(device)
        self.shrinks_S = shrinks_of(method.rule, device)

    def run(self) -> Iterator[Solution]:
        """Fix all columns; one solution per lane."""
        kind = self.kind
        for start, stop in kind.blocks(len(self.stored_IN), self.method.column_block):
            if kind.period and kind.pattern is None and start % kind.period == 0:
                self._choose(slice(start, start + kind.period))
            self._fix(start, stop)
        wholes = (self.stored_IN, self.mask_IN.expand_as(self.stored_IN), self.scales_GN, self.lows_GN)
        for parts in zip(*(torch.split(whole, self.widths, dim=1) for whole in wholes), strict=True):
            stored_OI, mask_OI, scales_OG, lows_OG = (part.T for part in parts)
            yield Solution(
                stored_OI,
                mask_OI if kind.masked else None,
                scales_OG if kind.group else None,
                -lows_OG if kind.group and not kind.symmetric else None,
            )

    def _choose(self, columns: slice) -> None:
        """Which of these columns' weights survive; each lane has its own number of zeros."""
        for lane, work_IO, mask_IO in zip(
            self.lanes, self.work_IO, torch.split(self.mask_IN, self.widths, dim=1), strict=True
        ):
            assert lane.sparsity is not None
            scores_OK = _scores(work_IO, self.factor.diagonal, columns)
            total, width = lane.sparsity.zeros(work_IO.numel()), len(work_IO)
            zeros = share(total, width, columns.start, min(columns.stop, width))
            mask_IO[columns] = keep_largest(scores_OK.reshape(1, -1), zeros).view(scores_OK.shape).T

    def _fix(self, start: int, stop: int) -> None:
        """Fix the columns of one block and update those after it."""
        kind, rows_II = self.kind, self.factor.rows
        block = _Block(
            kind,
            self.method.dtype,
            range(-start % kind.group, stop - start, kind.group) if kind.group else range(0),
            range(-start % kind.period, stop - start, kind.period) if kind.pattern else range(0),
        )
        longest = max([kind.group] * (0 in block.groups) + [kind.period] * (0 in block.patterns), default=0)
        ahead = slice(start, max(stop, start + longest))
        group = start // kind.group if kind.group else 0
        errors_KN, self.stored_IN[start:stop], self.mask_IN[ahead], scales_GN, lows_GN = self.replays(
            block,
            torch.cat([work_IO[ahead] for work_IO in self.work_IO], dim=1),
            rows_II[start:stop, start:stop],
            self.factor.diagonal[ahead],
            self.mask_IN[ahead],
            self.scales_GN[group],
            self.lows_GN[group],
            self.steps_N,
            self.shrinks_S,
        )
        if block.groups:
            first = (start + block.groups[0]) // kind.group
            self.scales_GN[first : first + len(scales_GN)] = scales_GN
            self.lows_GN[first : first + len(lows_GN)] = lows_GN
        for work_IO, errors_KO in zip(self.work_IO, torch.split(errors_KN, self.widths, dim=1), strict=True):
            work_IO[stop:].addmm_(rows_II[start:stop, stop:].T, errors_KO.contiguous(), alpha=-1)


@dataclass(frozen=True)
class _Block:
    """Fixes the columns of one block, one after the other, for all lanes at once.

    Attributes:
        kind: what the lanes have in common.
        dtype: type in which the scales are stored.
        groups: columns, counted from the block's first, at which a group of a grid begins.
        patterns: the same for a group of a pattern.
    """

    kind: _Kind
    dtype: torch.dtype
    groups: range
    patterns: range

    def __call__(
        self,
        open_MN: Tensor,
        rows_KK: Tensor,
        diagonal_M: Tensor,
        mask_MN: Tensor,
        scale_N: Tensor,
        low_N: Tensor,
        steps_N: Tensor,
        shrinks_S: Tensor,
    ) -> tuple[Tensor, ...]:
        """Errors and what is stored of K columns, the mask of M, scales and lows of the groups begun.

        `scale_N` and `low_N` are those of the group under way. `mask_MN` has one column if nothing is masked.
        """
        kind, columns = self.kind, len(rows_KK)
        work_MN, mask_MN = open_MN.clone(), mask_MN.clone()
        errors_KN = torch.empty_like(work_MN[:columns])
        values_KN = torch.empty_like(errors_KN, dtype=self.dtype)
        whole_KN = torch.empty_like(errors_KN)
        scales_GN = work_MN.new_empty((len(self.groups), work_MN.shape[1]))
        lows_GN = torch.empty_like(scales_GN)
        grid = Placement(scale_N, low_N, low_N + steps_N)
        for i in range(columns):
            if i in self.patterns and kind.pattern:
                some = slice(i, i + kind.period)
                mask_MN[some] = keep_pattern(_scores(work_MN, diagonal_M, some), kind.pattern).T
            if i in self.groups:
                some = slice(i, i + kind.group)
                weight_KN = work_MN[some] * mask_MN[some] if kind.masked else work_MN[some]
                grid = fit(weight_KN, steps_N, kind.symmetric, shrinks_S, self.dtype)
                group = self.groups.index(i)
                scales_GN[group], lows_GN[group] = grid.scale, grid.low
            if kind.group:
                torch.mul(grid.whole(work_MN[i], out=whole_KN[i]), grid.scale, out=values_KN[i])
            else:
                values_KN[i] = work_MN[i]
            if kind.masked:
                values_KN[i] *= mask_MN[i]
            torch.sub(work_MN[i], values_KN[i], out=errors_KN[i])
            work_MN[i + 1 : columns].addcmul_(rows_KK[i, i + 1 :, None], errors_KN[i], value=-1)
        if not kind.group:
            return errors_KN, values_KN, mask_MN, scales_GN, lows_GN
        lows = [low_N] * (0 not in self.groups) + list(lows_GN)
        edges = sorted({0, *self.groups, columns})
        for (first, last), low_N in zip(pairwise(edges), lows, strict=True):
            whole_KN[first:last] -= low_N
        return errors_KN, whole_KN.to(torch.uint8), mask_MN, scales_GN, lows_GN


def _scores(work_XN: Tensor, diagonal_X: Tensor, columns: slice) -> Tensor:
    """How much the output loses by each weight's removal, (N, K)."""
    return (work_XN[columns].square() / diagonal_X[columns, None]).T
