"""Division of a fidelity's sequences into micro-batches, for the computation of slopes.

Shapes: N sequences of the data set, B sequences of a micro-batch, T positions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..trial import Fidelity


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        tokens_BT: token ids of its sequences.
        count: number of leading sequences that count; the others only fill up the micro-batch.
        seed: seed for the tokens that are drawn from the model on this micro-batch.
    """

    tokens_BT: Tensor
    count: int
    seed: tuple[int, ...]


def batches_of(fidelity: Fidelity, tokens_NT: np.ndarray, size: int) -> list[Batch]:
    """Divide a fidelity's sequences into micro-batches of `size` sequences.

    A micro-batch that is not full is filled up with repetitions of its own sequences. Micro-batches begin at multiples
    of `size` in the fidelity's order, so a part of a fidelity that begins and ends at such multiples has the same
    micro-batches as the whole.

    Args:
        fidelity: the sequences to divide.
        tokens_NT: token ids of all sequences of the data set.
        size: number of sequences in each micro-batch.
    """
    rows = fidelity.rows(len(tokens_NT))
    found = []
    for place in range(fidelity.start // size * size, fidelity.stop, size):
        first, last = max(place, fidelity.start), min(place + size, fidelity.stop)
        own = rows[first - fidelity.start : last - fidelity.start]
        tokens_BT = tokens_NT[np.resize(own, size), : fidelity.length].astype(np.int64)
        found.append(Batch(torch.from_numpy(tokens_BT), len(own), (fidelity.seed, first)))
    return found
