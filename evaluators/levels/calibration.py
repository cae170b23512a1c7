"""Hidden states of the calibration tokens on their way through the blocks, and Hessians of the layers they pass.

Shapes: N sequences, B sequences of a micro-batch, T positions of a sequence, P positions of several sequences, D hidden
size, I inputs of a layer.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..runner.loaded import LoadedBlock
from ..runner.runner import BlockRunner

POSITIONS = 512
"""Number of positions in one product on tensor cores.

With more positions tensor cores cut off more of the sum, and with fewer it takes longer to add up the products.
"""


class CalibrationStates:
    """Hidden states of all calibration tokens, in host memory.

    They are the states before one of the blocks. At the beginning this is the first block; `advance` goes to the next.

    Args:
        runner: block runner whose blocks the states pass.
        tokens_NT: calibration tokens; N is a multiple of the runner's micro-batch.
    """

    def __init__(self, runner: BlockRunner, tokens_NT: np.ndarray) -> None:
        self._states: list[Tensor] = []
        for tokens_BT in np.split(tokens_NT.astype(np.int64), len(tokens_NT) // runner.micro_batch):
            # Copied, because the outputs of every block overwrite its inputs.
            self._states.append(host_copy(runner.embed(torch.from_numpy(tokens_BT).to(runner.device))))

    def __iter__(self) -> Iterator[Tensor]:
        """Iterate over the micro-batches of hidden states (B, T, D), in order."""
        return iter(self._states)

    def advance(self, loaded: LoadedBlock) -> None:
        """Replace the states by the outputs of the block with the weights that are installed in it.

        The calls are the same as in `hessians`, so that a build that is resumed has the same bits.
        """
        for states_BTD in self._states:
            outputs_BTD, _ = loaded.record(states_BTD.to(loaded.device, non_blocking=True))
            states_BTD.copy_(outputs_BTD)

    def hessians(self, loaded: LoadedBlock, *, advance: bool) -> dict[str, Tensor]:
        """Compute the Hessian of every linear layer that runs, the sum of x x^T over all positions of its inputs.

        Args:
            loaded: loaded block with its dense weights installed.
            advance: whether to replace the states by the block's outputs as well.

        Returns:
            Hessian (I, I) in float32 of every layer by path; layers that read the same tensor share one Hessian.
        """
        hessians: dict[str, Tensor] = {}
        for states_BTD in self._states:
            outputs_BTD, inputs = loaded.record(states_BTD.to(loaded.device, non_blocking=True))
            first: dict[int, str] = {}
            for path, inputs_BTI in inputs.items():
                twin = first.setdefault(inputs_BTI.data_ptr(), path)
                if twin == path:
                    hessians[path] = add_gram(hessians.get(path), inputs_BTI.flatten(0, -2))
                else:
                    hessians[path] = hessians[twin]
            if advance:
                states_BTD.copy_(outputs_BTD)
        return hessians


def add_gram(total_II: Tensor | None, x_PI: Tensor) -> Tensor:
    """Compute X^T X in float32, added in place to a total if there is one.

    Tensor cores multiply 16-bit inputs exactly and add in float32, but they cut digits off where other float32
    arithmetic rounds. The relative error of a product grows with its number of positions, by up to about 2^-25 each.
    So one product covers `POSITIONS` positions, and the products are added with rounding. Inputs on a CPU or of another
    type are multiplied in float32.
    """
    if total_II is None:
        total_II = torch.zeros((x_PI.shape[1], x_PI.shape[1]), device=x_PI.device)
    if not x_PI.is_cuda or x_PI.dtype not in (torch.float16, torch.bfloat16):
        x_PI = x_PI.float()
        return total_II.addmm_(x_PI.T, x_PI)
    for part_PI in torch.split(x_PI, POSITIONS):
        torch.addmm(total_II, part_PI.T, part_PI, out_dtype=torch.float32, out=total_II)
    return total_II


def host_copy(tensor: Tensor) -> Tensor:
    """Return a copy in host memory; that of a GPU's tensor is pinned, which makes copying ten times faster."""
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda).copy_(tensor)
