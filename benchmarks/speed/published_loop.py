"""The baseline of speed: EvoPress's published search, which runs one candidate after another through the plain model.

The dense model's logits of all calibration sequences are kept in host memory. Every selection draws new sequences and
cuts the last one to the tokens wanted. For each candidate the layers whose level differs from the loaded one are read
from disk into the plain model. Each sequence goes through the model by itself, and the divergence is summed over the
whole vocabulary, 1,024 positions at a time.

This is a new implementation. Log-softmax and sums are in float32, the allocator's cache is never emptied, and levels
are read packed and decoded on the device. The published code is at most as fast at each of these.

Shapes: N sequences, B sequences of one call, T positions, P positions of several sequences, V vocabulary.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM

from paretopress.evaluators.text.sources import IntArray
from paretopress.spaces.model.structure import Structure
from paretopress.spaces.storage.database import LevelDatabase

POSITIONS = 1024
"""Number of positions whose probabilities exist at once."""

Assignment = Mapping[str, str]
"""Layer path to label, with the same layers in every candidate."""


@dataclass(frozen=True)
class Selection:
    """Seconds of one selection, and the fitness of every candidate."""

    seconds: float
    values: tuple[float, ...]

    def best(self, count: int) -> list[int]:
        """Return the indices of the `count` candidates of lowest fitness, the best first."""
        return [int(i) for i in np.argsort(self.values, kind="stable")[:count]]


class PublishedLoop:
    """The plain model on one device, with the levels that are loaded into it.

    Args:
        folder: folder of the dense checkpoint.
        structure: structure of the model.
        database: level database, read from disk whenever the level of a layer changes.
        tokens_NT: token ids of the sequences that selections draw from.
        device: device that the model runs on.
        dtype: dtype that the model computes in.
        together: number B of sequences of one call, which is 1 in the published search.
    """

    @torch.no_grad()
    def __init__(
        self,
        folder: str | Path,
        structure: Structure,
        database: LevelDatabase,
        tokens_NT: IntArray,
        *,
        device: torch.device,
        dtype: torch.dtype,
        together: int = 1,
    ) -> None:
        self.database = database
        self.device = device
        self.dtype = dtype
        self.together = together
        self._linears = {linear.path: linear for linear in structure.linears}
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", use_safetensors=True
        )
        self._model = model.to(device).eval()
        self._tokens_NT = torch.from_numpy(tokens_NT.astype(np.int64))
        shape_NTV = (*tokens_NT.shape, structure.ends.head.out_features)
        self._taught_NTV = torch.empty(shape_NTV, dtype=dtype)
        for row_T, taught_TV in zip(self._tokens_NT, self._taught_NTV, strict=True):
            taught_TV.copy_(self._logits(row_T[None])[0])
        self._loaded: dict[str, str] = {}

    def _logits(self, tokens_BT: Tensor) -> Tensor:
        logits_BTV: Tensor = self._model(tokens_BT.to(self.device), use_cache=False).logits
        return logits_BTV

    @torch.no_grad()
    def install(self, candidate: Assignment) -> int:
        """Read the layers whose level differs from the loaded one, and return their number."""
        switched = {path: label for path, label in candidate.items() if self._loaded.get(path) != label}
        for path, label in switched.items():
            weight = self._model.get_parameter(f"{path}.weight")
            read = self.database.load(path, label, self.device).dense()
            weight.data = self._linears[path].turn(read).to(self.dtype)
        self._loaded |= switched
        return len(switched)

    @torch.no_grad()
    def fitness(self, rows: Sequence[int], length: int, last: int | None = None) -> float:
        """Compute the divergence of the loaded model from the dense one in nats, as a mean over positions.

        Args:
            rows: indices of the sequences.
            length: number of tokens of each sequence.
            last: number of tokens that the last sequence is cut to, if it is less than `length`.
        """
        cut = last is not None and last < length
        whole = list(rows[:-1] if cut else rows)
        calls = [(whole[i : i + self.together], length) for i in range(0, len(whole), self.together)]
        if last is not None and cut:
            calls.append((list(rows[-1:]), last))
        total, positions = torch.zeros((), device=self.device), 0
        for part, used in calls:
            logits_BTV = self._logits(self._tokens_NT[part, :used])
            # A single row is read as a view, which copies nothing in host memory.
            taught_BTV = self._taught_NTV[part[0]][None] if len(part) == 1 else self._taught_NTV[part]
            taught_BTV = taught_BTV[:, :used].to(self.device)
            total += _divergence(taught_BTV[:, :-1].flatten(0, 1), logits_BTV[:, :-1].flatten(0, 1))
            positions += len(part) * (used - 1)
        return float(total) / positions

    def select(self, candidates: Sequence[Assignment], tokens: int, rng: np.random.Generator) -> Selection:
        """Evaluate all candidates on `tokens` tokens of newly drawn sequences, and time this.

        Raises:
            ValueError: the loop has too few sequences for these tokens.
        """
        pool, length = self._tokens_NT.shape
        count = -(-tokens // length)
        if count > pool:
            raise ValueError(f"{tokens} tokens need {count} sequences, the loop has {pool}; give it more")
        began = time.perf_counter()
        rows = [int(row) for row in rng.permutation(pool)[:count]]
        values = []
        for candidate in candidates:
            self.install(candidate)
            values.append(self.fitness(rows, length, tokens - (count - 1) * length))
        return Selection(time.perf_counter() - began, tuple(values))


def _divergence(taught_PV: Tensor, logits_PV: Tensor) -> Tensor:
    """Return KL(teacher || model) in nats, summed over positions in float32."""
    total = torch.zeros((), device=logits_PV.device)
    for first in range(0, len(logits_PV), POSITIONS):
        student_PV = logits_PV[first : first + POSITIONS].float().log_softmax(-1)
        teacher_PV = taught_PV[first : first + POSITIONS].float().log_softmax(-1)
        total += kl_div(student_PV, teacher_PV, reduction="sum", log_target=True)
    return total


def touch(database: LevelDatabase) -> int:
    """Read every level file once, so that later reads come from the page cache, and return the bytes read."""
    total = 0
    for path in sorted(database.path.glob("*.safetensors")):
        with path.open("rb") as file:
            while part := file.read(1 << 24):
                total += len(part)
    return total
