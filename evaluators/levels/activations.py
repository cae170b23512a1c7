"""What activations of the dense model tell of its blocks: outliers, and how far each turns the hidden states.

Shapes: N sequences, B micro-batch, T positions, D hidden, I inputs of a layer, O outputs.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..runner.loaded import LoadedBlock
from ..runner.runner import BlockRunner

_Look = Callable[[LoadedBlock, Tensor], None]
"""Given a block and a micro-batch (B, T, D) of its inputs."""

OUTLIER = 5.0
"""How many times the mean an outlier is: M in OWL, whose experiments take 5 or 7."""


def outlier_ratios(runner: BlockRunner, tokens_NT: np.ndarray, outlier: float = OUTLIER) -> list[float]:
    """Each block's fraction of weights whose importance |W_oi| * ||x_i|| exceeds `outlier` times the block's mean.

    Time: one forward. Memory: one block, and all hidden states in host memory.

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
    """How far each block turns the hidden states: 1 - cos(before, after), the mean over positions.

    Of every block as a whole (`block`), and of its branches: `attention` between the block's input and that plus
    the attention, `mlp` between the latter and the block's output.

    Time: forwards of two and a half models. Memory: one block, and all hidden states in host memory.

    References:
        Block influence of ShortGPT (Men et al., arXiv 2403.03853); of branches: He et al. (arXiv
        2406.15786).
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
    """Show every micro-batch to each block in turn; N is a multiple of the runner's micro-batch."""
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
