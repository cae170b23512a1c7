"""Calibration states on their way through the blocks, and the Hessians of the layers they pass.

Shapes: N sequences, B micro-batch, T positions of a sequence, P positions of several, D hidden, I inputs of a layer.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..runner.loaded import LoadedBlock
from ..runner.runner import BlockRunner

POSITIONS = 512
"""Of one product on tensor cores: what they cut off grows with it, the time to add up the products falls."""


class CalibrationStates:
    """The hidden states of all calibration tokens before some block, in host memory.

    Args:
        runner: whose blocks they pass.
        tokens_NT: N a multiple of the runner's micro-batch.
    """

    def __init__(self, runner: BlockRunner, tokens_NT: np.ndarray) -> None:
        self._states: list[Tensor] = []
        for tokens_BT in np.split(tokens_NT.astype(np.int64), len(tokens_NT) // runner.micro_batch):
            # Every block's outputs will take the place of its inputs.
            self._states.append(host_copy(runner.embed(torch.from_numpy(tokens_BT).to(runner.device))))

    def __iter__(self) -> Iterator[Tensor]:
        """Micro-batches of states_BTD, in order."""
        return iter(self._states)

    def advance(self, loaded: LoadedBlock) -> None:
        """Pass the block as it is installed, by the very calls that `hessians` makes: a build may be resumed."""
        for states_BTD in self._states:
            outputs_BTD, _ = loaded.record(states_BTD.to(loaded.device, non_blocking=True))
            states_BTD.copy_(outputs_BTD)

    def hessians(self, loaded: LoadedBlock, *, advance: bool) -> dict[str, Tensor]:
        """Sum of x x^T over all positions, per layer (float32, (I, I)).

        Layers that read the same tensor share one Hessian.

        Args:
            loaded: a dense block.
            advance: pass the block as well.
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
    """X^T X in float32, added in place to a total if there is one.

    Tensor cores multiply 16-bit inputs exactly and add in float32, but cut off where float32 units round: a product's
    relative error grows with its positions, up to about 2^-25 each. So they make it of `POSITIONS` at a time, and
    the products are added with rounding. Anything else is multiplied in float32.
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
    """In host memory; pinned, and so copied ten times faster, if it comes from a GPU."""
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda).copy_(tensor)
