"""Two measures of a block's importance from the dense model's activations: outliers, and the turn of hidden states.

Shapes: N sequences, B sequences of a micro-batch, T positions, D hidden size, I inputs of a layer, O outputs.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..runner.loaded import LoadedBlock
from ..runner.runner import BlockRunner

_Look = Callable[[LoadedBlock, Tensor], None]
"""A function that is called with a loaded block and a micro-batch (B, T, D) of its inputs."""

OUTLIER = 5.0
"""Number of times the mean that an importance must exceed to be an outlier, M in OWL, whose experiments take 5 or 7."""


def outlier_ratios(runner: BlockRunner, tokens_NT: np.ndarray, outlier: float = OUTLIER) -> list[float]:
    """Compute each block's fraction of weights whose importance exceeds `outlier` times the block's mean.

    The importance of a weight is |W_oi| * ||x_i||. Time: one forward pass. Memory: one block on its device, and all
    hidden states in host memory.

    Args:
        runner: block runner of the dense model.
        tokens_NT: calibration tokens; N is a multiple of the runner's micro-batch.
        outlier: factor by which the importance of an outlier exceeds the mean.

    Returns:
        The fraction of outliers of every block, in the order of the blocks.

    References:
        Layerwise outlier distribution of OWL (Yin et al., arXiv 2310.05175), whose layers are blocks.
    """
    squares: dict[str, Tensor] = {}
    ratios: list[float] = []

    def look(loaded: LoadedBlock, states_BTD: Tensor) -> None:
        for path, inputs_BTI in loaded.record(states_BTD)[1].items():
            squares[path] = squares.get(path, 0.0) + inputs_BTI.float().square().sum((0, 1))

    def finish(loaded: LoadedBlock) -> None:
        importances = []
        for linear in loaded.block.linears:
            weight_OI = linear.turn(runner.checkpoint.tensor(f"{linear.path}.weight").to(loaded.device))
            importances.append(weight_OI.float().abs() * squares.pop(linear.path).sqrt())
        count = sum(importance.numel() for importance in importances)
        mean = sum(float(importance.sum()) for importance in importances) / count
        ratios.append(sum(int((importance > outlier * mean).sum()) for importance in importances) / count)

    _walk(runner, tokens_NT, look, finish)
    return ratios


def influences(runner: BlockRunner, tokens_NT: np.ndarray) -> list[dict[str, float]]:
    """Compute how far each block turns the hidden states, as the mean over positions of 1 - cos(before, after).

    Time: forward passes of two and a half models. Memory: one block on its device, and all hidden states in host
    memory.

    Args:
        runner: block runner of the dense model.
        tokens_NT: calibration tokens; N is a multiple of the runner's micro-batch.

    Returns:
        For every block, in order, the turns of `block`, `attention` and `mlp`. The turn of `block` is between the
        block's input and its output. That of `attention` is between the block's input and the sum of this input and
        the attention's output. That of `mlp` is between this sum and the block's output.

    References:
        Block influence of ShortGPT (Men et al., arXiv 2403.03853). For branches, He et al. (arXiv 2406.15786).
    """
    turned: dict[str, list[float]] = {}
    found: list[dict[str, float]] = []

    def look(loaded: LoadedBlock, states_BTD: Tensor) -> None:
        loaded.install({})
        after_BTD = loaded(states_BTD)
        loaded.install({}, ("mlp",))
        between_BTD = loaded(states_BTD)
        pairs = {
            "block": (states_BTD, after_BTD),
            "attention": (states_BTD, between_BTD),
            "mlp": (between_BTD, after_BTD),
        }
        for name, (before, after) in pairs.items():
            turn = 1 - cosine_similarity(before.float(), after.float(), dim=-1).double()
            turned.setdefault(name, []).append(float(turn.mean()))

    def finish(loaded: LoadedBlock) -> None:
        loaded.install({})
        found.append({name: sum(values) / len(values) for name, values in turned.items()})
        turned.clear()

    _walk(runner, tokens_NT, look, finish)
    return found


@torch.no_grad()
def _walk(
    runner: BlockRunner, tokens_NT: np.ndarray, look: _Look, finish: Callable[[LoadedBlock], None]
) -> None:
    """Call `look` with each block and every micro-batch of its inputs, and `finish` after the last one of each block.

    N must be a multiple of the runner's micro-batch.
    """
    size = runner.micro_batch
    tokens = [
        torch.from_numpy(tokens_NT[i : i + size].astype(np.int64)) for i in range(0, len(tokens_NT), size)
    ]
    states = [runner.embed(tokens_BT).cpu() for tokens_BT in tokens]
    for block in runner.structure.blocks:
        with runner.block(block.index) as loaded:
            for states_BTD in states:
                look(loaded, states_BTD.to(loaded.device))
            finish(loaded)
            states = [loaded(states_BTD).cpu() for states_BTD in states]
