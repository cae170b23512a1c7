"""How a block runs many micro-batches: side by side, replayed or one by one, always with the same bits."""

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
    """How blocks run their micro-batches.

    Attributes:
        compiled: through `torch.compile`; decides the last bits.
        replayed: one micro-batch as a CUDA graph. Its bits are those of the plain block.
        rows: positions that may run at once. Never changes a bit.
    """

    compiled: bool = False
    replayed: bool = False
    rows: int = 0

    @classmethod
    def of(cls, weights: int, rows: int, device: torch.device) -> "Pace":
        """What suits a block of `weights` weights whose micro-batch has `rows` positions.

        Under 0.2 TFLOP per micro-batch a GPU waits for launches: those are replayed. From 0.03 TFLOP on it waits
        for memory between the products: norms and activations are compiled, which saves a quarter to two fifths
        of the time of blocks of 47 and 12 million weights (on an H200) and takes about ten seconds once. Products of 32,768
        rows come nearest to its peak. A CPU is busy with any micro-batch.
        """
        if device.type != "cuda":
            return cls()
        work = 2 * weights * rows
        return cls(work >= _WORTH_COMPILING, work < _LAUNCH_BOUND, _ROWS)

    def widest(self, rows: int) -> int:
        """Micro-batches of `rows` positions, a power of two, that may run at once; at least one."""
        return 1 << max(0, (self.rows // rows).bit_length() - 1)


class Launcher:
    """Runs a function of one micro-batch's states on many.

    Micro-batches go side by side in powers of two, because a chip needs many rows to be busy. Whether that gives
    the bits of each alone depends on the kernels chosen for the shape, so a width is believed only after it did,
    for every output, the first time it was used; until then, and where it does not, they run one by one.

    Args:
        run: states (n * B, T, D) to states of the same shape, for any n.
        widest: micro-batches that may go side by side; a power of two.
        replays: what a single micro-batch is replayed by, or None; every tensor that `run` reads then stays
            where it is.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], widest: int, replays: Replays | None = None) -> None:
        self._run = run
        self._widest = widest
        self._replays = replays
        self._recorded = lambda states_BTD: (run(states_BTD),)
        self._same_bits: dict[int, bool] = {1: True}

    def __call__(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """States (B, T, D) of every micro-batch after the function."""
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
        # Kernels are chosen by alignment as well, and an output is the next block's input.
        return [part.clone() if part.data_ptr() % _ALIGNMENT else part for part in parts]

    def _compared(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """The outputs one by one; notes whether those side by side are equal."""
        alone = [self._alone(batch) for batch in batches]
        equal = all(map(_equal_bits, alone, self._together(batches)))
        if not equal or all(map(_tells, alone)):
            self._same_bits[len(batches)] = equal
        return alone


def _tells(output: Tensor) -> bool:
    """Whether it could have shown a difference: NaNs and constants hide one."""
    return bool(output.isfinite().all() and output.min() < output.max())


def _equal_bits(one: Tensor, other: Tensor) -> bool:
    """Unlike `torch.equal`, NaNs are equal to themselves and zeros differ by their signs."""
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
