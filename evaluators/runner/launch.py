"""The running of many micro-batches side by side, replayed or one by one, always with the same bits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...spaces.levels.cuda_graphs import Replays

_LAUNCH_BOUND = 2e11
_WORTH_COMPILING = 3e10
_ROWS = 32_768
_ALIGNMENT = 512


@dataclass(frozen=True, slots=True)
class Pace:
    """The way in which blocks run their micro-batches.

    Attributes:
        compiled: whether blocks run through `torch.compile`, which changes the last bits of values.
        replayed: whether a single micro-batch is replayed as a CUDA graph, with the bits of the plain block.
        rows: number of positions that may run at once, at least one micro-batch; never changes a bit.
    """

    compiled: bool = False
    replayed: bool = False
    rows: int = 0

    @classmethod
    def of(cls, weights: int, rows: int, device: torch.device) -> "Pace":
        """Return the pace for a block of `weights` weights whose micro-batch has `rows` positions.

        Below 0.2 TFLOP per micro-batch a GPU waits for launches, so micro-batches are replayed. From 0.03 TFLOP on it
        waits for memory between the products, so norms and activations are compiled. Compiling saves a quarter to two
        fifths of the time of blocks of 47 and 12 million weights (on an H200) and takes about ten seconds once.
        Products of 32,768 rows come nearest to a GPU's peak. A CPU is busy with any micro-batch.
        """
        if device.type != "cuda":
            return cls()
        work = 2 * weights * rows
        return cls(work >= _WORTH_COMPILING, work < _LAUNCH_BOUND, _ROWS)

    def widest(self, rows: int) -> int:
        """Return how many micro-batches of `rows` positions may run at once, as a power of two, at least 1."""
        return 1 << max(0, (self.rows // rows).bit_length() - 1)


class Launcher:
    """Runs a function of the hidden states of one micro-batch on many micro-batches.

    Several micro-batches run side by side, because a GPU needs many rows to be busy. Their number, the width, is a
    power of two. Kernels depend on the shape, so outputs may have other bits than if each micro-batch ran by itself.
    Therefore, when a width is used for the first time, its micro-batches run one by one as well, and all outputs are
    compared. A width with other bits is not used again; half of it takes its place.

    Args:
        run: function from states (n * B, T, D) to states of the same shape, for any n.
        widest: largest number of micro-batches that may run side by side, a power of two.
        replays: recorder of CUDA graphs that replays single micro-batches, or None. If given, every tensor that `run`
            reads must stay at its place in memory.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], widest: int, replays: Replays | None = None) -> None:
        self._run = run
        self._widest = widest
        self._replays = replays
        self._recorded = lambda states_BTD: (run(states_BTD),)
        self._same_bits: dict[int, bool] = {1: True}

    def __call__(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """Return the results (B, T, D) of the function for the states (B, T, D) of every micro-batch."""
        outputs: list[Tensor] = []
        while remaining := len(batches) - len(outputs):
            width = min(self._widest, 1 << (remaining.bit_length() - 1))
            while self._same_bits.get(width) is False:
                width //= 2
            part = batches[len(outputs) : len(outputs) + width]
            outputs += self._together(part) if width in self._same_bits else self._compared(part)
        return outputs

    def _alone(self, states_BTD: Tensor) -> Tensor:
        if self._replays is None:
            return self._run(states_BTD)
        (output_BTD,) = self._replays(self._recorded, states_BTD)
        return output_BTD.clone()

    def _together(self, batches: Sequence[Tensor]) -> list[Tensor]:
        if len(batches) == 1:
            return [self._alone(batches[0])]
        parts = self._run(torch.cat(list(batches))).chunk(len(batches))
        # The next block reads these outputs, and its kernels are chosen by alignment as well.
        return [part.clone() if part.data_ptr() % _ALIGNMENT else part for part in parts]

    def _compared(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """Return the outputs computed one by one, and note whether those computed side by side are equal."""
        alone = [self._alone(batch) for batch in batches]
        equal = all(map(_equal_bits, alone, self._together(batches)))
        if not equal or all(map(_tells, alone)):
            self._same_bits[len(batches)] = equal
        return alone


def _tells(output: Tensor) -> bool:
    """Return whether the output tells something: values that are not finite, or are all equal, hide differences."""
    return bool(output.isfinite().all() and output.min() < output.max())


def _equal_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether the bits are equal; unlike in `torch.equal`, NaNs equal themselves and zeros differ by sign."""
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
