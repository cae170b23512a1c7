"""Scoring of candidates after the last block: their logits, in chunks, are compared with the teacher's.

Shapes: B sequences of a micro-batch, T positions, D hidden size, P positions of one chunk, V vocabulary, S students.
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
"""A function of the teacher's chunk or None, logits (P, V) and next tokens (P,): fitness and cross-entropy (2, P)."""


@dataclass(frozen=True, slots=True)
class Student:
    """A model to score. It stands for one candidate, or for several that have the same blocks and head.

    Attributes:
        states: hidden states (B, T, D) of the model after its last block, one tensor per micro-batch.
        head: label of the head's level, or None for the dense head.
    """

    states: Sequence[Tensor]
    head: str | None


class Scorer:
    """Computes fitness and cross-entropy of students on sequences.

    Args:
        runner: block runner whose head computes the logits.
        fitness: settings of the fitness to compute.
        chunk: number of positions whose logits exist at once.
        install_head: function that installs the head's level with a label, or the dense head for None.
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
        """Compute fitness and cross-entropy as means over all positions of a sequence except the last.

        Args:
            students: candidates to score, with their hidden states after the last block.
            teacher: the teacher's hidden states (B, T, D) after the last block, of every micro-batch, on any device;
                empty if the fitness needs no teacher.
            tokens: token ids (B, T) of every micro-batch.

        Returns:
            Fitness and cross-entropy in float64, of shape (2, S, sequences of all micro-batches).
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
        # One transfer for all values, because on a GPU waiting for each value would take longer than its logits.
        values = found.cpu().numpy().reshape(2, len(students), -1, length)
        self._install_head(None)
        # Converted before the sum, because numpy's buffer for sums that convert may split a row where other rows end.
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
        """Fill in the results of one chunk of positions for every student; the teacher's logits are computed once.

        Args:
            students: models to score.
            micro_batch: index of the micro-batch in the students' hidden states.
            teacher_BTD: the teacher's hidden states after the last block, or None if the fitness needs no teacher.
            targets: next token of every position of the micro-batch, (B * T,).
            piece: slice of the B * T positions of the micro-batch that is the chunk.
            found: tensor (2, S, P) that receives fitness and cross-entropy of every student at every position.
        """
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
