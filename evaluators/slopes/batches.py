"""A fidelity's sequences in micro-batches, for what passes the model as a whole.

Shapes: N sequences, B micro-batch, T positions.
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
        tokens_BT: of its sequences.
        count: how many of them count; the others fill it up.
        seed: of the tokens drawn on it.
    """

    tokens_BT: Tensor
    count: int
    seed: tuple[int, ...]


def batches_of(fidelity: Fidelity, tokens_NT: np.ndarray, size: int) -> list[Batch]:
    """A fidelity's sequences in micro-batches; one that is not full is filled up with its own again.

    They begin at multiples of `size` in the fidelity's order: a part of a fidelity that begins and ends at multiples has
    those of the whole.
    """
    rows = fidelity.rows(len(tokens_NT))
    found = []
    for place in range(fidelity.start // size * size, fidelity.stop, size):
        first, last = max(place, fidelity.start), min(place + size, fidelity.stop)
        own = rows[first - fidelity.start : last - fidelity.start]
        tokens_BT = tokens_NT[np.resize(own, size), : fidelity.length].astype(np.int64)
        found.append(Batch(torch.from_numpy(tokens_BT), len(own), (fidelity.seed, first)))
    return found
