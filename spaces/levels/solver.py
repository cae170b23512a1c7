"""Compression of linear layers column by column with error compensation: GPTQ, SparseGPT, and both in one pass.

A column holds the weights of one input for all outputs. The solver goes through the columns in order. It replaces each
column by the values that will be stored, and changes the later columns so that they compensate the error, as the
layer's Hessian says (optimal brain surgeon). The changes of columns outside the current block of columns are applied
once per block, as one matrix product (the late update). This changes the speed and not the definition.

A lane is one layer at one label. The outputs of a layer do not depend on each other, except that an unstructured mask is
chosen over all of them. So lanes that read the same inputs are solved side by side, with their outputs in one wide row.
The operations on a column are elementwise and are launched once for all lanes. The bits of a matrix product may depend
on its width, so the late updates are computed for each lane separately, in the lane's own memory. So the bits of a
lane do not depend on the other lanes.

Shapes: O outputs of a lane, N outputs of all lanes together, I inputs, G groups of inputs, K columns of a block,
M columns that a block reads (more than K if a group or pattern that begins the block is longer), S tried scales.

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
"""Most weights that are solved side by side, 1 GiB of float32: enough to hide the time of kernel launches."""


@dataclass(frozen=True, eq=False)
class Lane:
    """One layer at one label, to be compressed with error compensation.

    Attributes:
        weight_OI: weight of the layer in float32.
        sparsity: sparsity whose mask the solver chooses, or None. Weights with the smallest w^2 / U[i, i]^2 are
            pruned, where w is the weight as updated so far. An unstructured mask is chosen at the start of each block
            of columns, with the block's even share of the zeros; a pattern at the first column of each of its groups.
        mask_OI: mask that is given instead of `sparsity`; weights are pruned where it is false.
        grid: grid of the surviving weights, or None. The scales of a group are computed from its updated weights when
            the solver reaches the group's first column.
    """

    weight_OI: Tensor
    sparsity: Sparsity | None = None
    mask_OI: Tensor | None = None
    grid: Grid | None = None


@dataclass(frozen=True)
class Method:
    """Settings that all lanes are solved with.

    Attributes:
        dtype: 16-bit type in which values and scales are stored. Errors are those of the stored values, so that
            rounding to this type is compensated too.
        column_block: most columns that share one late update, and number of columns whose unstructured mask is
            chosen together.
        rule: rule by which scales are chosen.
    """

    dtype: torch.dtype
    column_block: int
    rule: ScaleRule = "minmax"


def solve(lanes: Sequence[Lane], factor: Factor, method: Method, replays: Replays) -> list[Solution]:
    """Compress layers that read the same inputs; the bits of each solution do not depend on the other lanes.

    Args:
        lanes: layers at their labels, with the same number of inputs and on the same device.
        factor: factorized inverse Hessian of the inputs.
        method: settings that all lanes share.
        replays: recordings that run the operations inside a block of columns.

    Returns:
        The solutions in the order of the lanes.
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
    """The properties that lanes must share to be solved side by side; bits and numbers of zeros may differ.

    Attributes:
        group: number of columns that share a scale; 0 without a grid.
        symmetric: whether the grid is symmetric.
        period: number of columns whose mask is chosen together; 0 if the solver chooses no mask.
        pattern: pattern whose mask is chosen inside a block of columns; None if the mask is unstructured or given.
        masked: whether the lanes have a mask.
    """

    group: int
    symmetric: bool
    period: int
    pattern: Pattern | None
    masked: bool

    @classmethod
    def of(cls, lane: Lane, method: Method) -> "_Kind":
        """Return the kind of a lane."""
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
        """Yield the first column of each block of columns and the column after its last.

        A group or period that begins after the first column of a block also ends in the block. So all columns of a
        group are up to date when its scale or mask is chosen. A period of an unstructured mask begins with a block.

        Args:
            width: number of columns of the layer.
            limit: most columns of a block.
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
    """Lanes of one kind that are solved side by side.

    Args:
        kind: properties that the lanes share.
        lanes: layers at their labels.
        factor: factorized inverse Hessian of the inputs.
        method: settings that all lanes share.
        replays: recordings that run the operations inside a block of columns.
    """

    def __init__(
        self, kind: _Kind, lanes: Sequence[Lane], factor: Factor, method: Method, replays: Replays
    ) -> None:
        self.kind, self.lanes, self.factor, self.method, self.replays = kind, lanes, factor, method, replays
        self.widths = [len(lane.weight_OI) for lane in lanes]
        # Each lane has its own memory, so that its late updates are the same matrix products beside any other lanes.
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
        """Solve all columns and yield the solution of each lane."""
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
        """Choose an unstructured mask in these columns; each lane has its own number of zeros."""
        for lane, work_IO, mask_IO in zip(
            self.lanes, self.work_IO, torch.split(self.mask_IN, self.widths, dim=1), strict=True
        ):
            assert lane.sparsity is not None
            scores_OK = _scores(work_IO, self.factor.diagonal, columns)
            total, width = lane.sparsity.zeros(work_IO.numel()), len(work_IO)
            zeros = share(total, width, columns.start, min(columns.stop, width))
            mask_IO[columns] = keep_largest(scores_OK.reshape(1, -1), zeros).view(scores_OK.shape).T

    def _fix(self, start: int, stop: int) -> None:
        """Replace the columns of one block by stored values, and apply the late update to all columns after it."""
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
    """A function of tensors that solves the columns of one block in order, for all lanes at once.

    Attributes:
        kind: properties that the lanes share.
        dtype: 16-bit type in which values and scales are stored.
        groups: columns at which a group of the grid begins, counted from the block's first column.
        patterns: columns at which a group of the pattern begins, counted from the block's first column.
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
        """Solve the columns of the block.

        Args:
            open_MN: weights of the columns, with all late updates so far.
            rows_KK: `Factor.rows` between the columns of the block.
            diagonal_M: `Factor.diagonal` of the columns.
            mask_MN: mask of the columns as chosen so far, (M, 1) if the lanes have no mask.
            scale_N: scale of the group that the block's first column lies in.
            low_N: smallest whole number on the grid of that group.
            steps_N: 2^bits - 1 of each output.
            shrinks_S: factors by which `fit` shrinks the range of a group.

        Returns:
            Errors (K, N) and stored codes or values (K, N) of the block, the mask (M, N) or (M, 1), and the scales
            and smallest whole numbers (G, N) of the groups that begin in the block.
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
    """Return by how much the squared output error grows if a weight is removed, (N, K) up to a factor."""
    return (work_XN[columns].square() / diagonal_X[columns, None]).T
