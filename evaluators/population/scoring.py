"""What comes after the blocks: logits in chunks, compared with the teacher's over the whole vocabulary.

Shapes: B sequences, T positions, D hidden, P positions of one chunk, V vocabulary, S students.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..fitness import FitnessConfig, TeacherChunk, cross_entropy, fitness_of, teacher_chunk
from ..runner.kernels import compiled, fixed_kernels
from ..runner.runner import BlockRunner

Score = Callable[[TeacherChunk | None, Tensor, Tensor], Tensor]
"""(teacher, logits_PV, targets_P) to fitness and cross-entropy, (2, P)."""


@dataclass(frozen=True, slots=True)
class Student:
    """One candidate after the blocks.

    Attributes:
        states: hidden states (B, T, D) of every micro-batch.
        head: label of its head, or None for the dense one.
    """

    states: Sequence[Tensor]
    head: str | None


class Scorer:
    """Fitness and cross-entropy of students on sequences.

    Args:
        runner: block runner whose head makes the logits.
        fitness: what is minimised.
        chunk: positions whose logits exist at once.
        install_head: called with a label, or None for the dense head.
    """

    def __init__(
        self,
        runner: BlockRunner,
        fitness: FitnessConfig,
        chunk: int,
        install_head: Callable[[str | None], None],
    ) -> None:
        self._runner = runner
        self._fitness = fitness
        self._chunk = chunk
        self._install_head = install_head
        self._score: Score = _score_by(fitness)
        if runner.pace.compiled:
            self._score = compiled(self._score)

    def __call__(
        self, students: Sequence[Student], teacher: Sequence[Tensor], tokens: Sequence[Tensor]
    ) -> np.ndarray:
        """Means over every position of a sequence but the last.

        Args:
            students: candidates to score, hidden states (B, T, D) after the last block.
            teacher: last hidden states (B, T, D) of every micro-batch, on any device; empty if none is needed.
            tokens: (B, T) of every micro-batch.

        Returns:
            Float64 (2, S, sequences of all micro-batches): fitness and cross-entropy.
        """
        with fixed_kernels(self._runner.device):
            return self._means(students, teacher, tokens)

    def _means(
        self, students: Sequence[Student], teacher: Sequence[Tensor], tokens: Sequence[Tensor]
    ) -> np.ndarray:
        sequences, length = tokens[0].shape
        found = torch.empty(
            (2, len(students), len(tokens), sequences * length),
            dtype=torch.float32,
            device=self._runner.device,
        )
        for i, tokens_BT in enumerate(tokens):
            targets = tokens_BT.roll(-1, 1).flatten()
            taught = teacher[i].to(self._runner.device, non_blocking=True) if len(teacher) else None
            for start in range(0, sequences * length, self._chunk):
                piece = slice(start, start + self._chunk)
                self._piece(students, i, taught, targets, piece, found[:, :, i, piece])
        # One transfer for all: waiting for each would cost a GPU more than its logits do.
        values = found.cpu().numpy().reshape(2, len(students), -1, length)
        self._install_head(None)
        # Converted before it is summed: numpy's buffered sums may be cut where other rows end.
        return np.asarray(values[..., :-1].astype(np.float64).sum(-1) / (length - 1))

    def _piece(
        self,
        students: Sequence[Student],
        micro_batch: int,
        teacher_BTD: Tensor | None,
        targets: Tensor,
        piece: slice,
        found: Tensor,
    ) -> None:
        """Fill in one chunk of positions, (2, S, P), for every student; the teacher's logits are made once."""
        taught, installed = None, None
        self._install_head(None)
        if teacher_BTD is not None:
            taught = teacher_chunk(self._fitness, self._runner.logits(teacher_BTD.flatten(0, 1)[piece]))
        for s, student in enumerate(students):
            if student.head != installed:
                self._install_head(student.head)
                installed = student.head
            states_PD = student.states[micro_batch].flatten(0, 1)[piece].to(self._runner.device)
            found[:, s] = self._score(taught, self._runner.logits(states_PD), targets[piece])


def _score_by(fitness: FitnessConfig) -> Score:
    divergence = fitness_of(fitness)

    def score(teacher: TeacherChunk | None, logits_PV: Tensor, targets_P: Tensor) -> Tensor:
        log_probs_PV = logits_PV.log_softmax(-1)
        loss_P = cross_entropy(log_probs_PV, targets_P)
        value_P = divergence(teacher, log_probs_PV) if divergence and teacher else loss_P
        return torch.stack((value_P, loss_P))

    return score
