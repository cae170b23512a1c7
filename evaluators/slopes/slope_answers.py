"""Answers to trials that ask for slopes, within the memory that there is."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from ...spaces.space import Space
from ..fitness import FitnessConfig
from ..runner.block_weights import BlockWeights
from ..runner.gradients import GradientRunner
from ..runner.runner import BlockRunner
from ..trial import Evaluation, Trial
from .batches import batches_of
from .slopes import level_slopes


@dataclass(frozen=True)
class SlopeAnswers:
    """Answers trials of one space.

    Attributes:
        space: gives meaning to profiles.
        weights: of the levels and of the dense model.
        runner: runs the model; must be a `GradientRunner` as soon as there is a trial.
        fitness: what is minimised.
        memory: bytes of host memory for hidden states; changes no bit.
    """

    space: Space
    weights: BlockWeights
    runner: BlockRunner
    fitness: FitnessConfig
    memory: int

    def answer(self, trial: Trial, tokens_NT: np.ndarray) -> Evaluation:
        """Slopes over the trial's sequences of all those in `tokens_NT`.

        Raises:
            TypeError: the runner knows no gradients.
            ValueError: they do not fit the device.
        """
        if not isinstance(self.runner, GradientRunner):
            raise TypeError("slopes need a GradientRunner; make the evaluator with one")
        start = time.perf_counter()
        batches = batches_of(trial.fidelity, tokens_NT, self.runner.micro_batch)
        together = self._together(batches[0].tokens_BT.numel())
        try:
            found = level_slopes(
                self.runner, self.space, self.weights, trial.profile, batches, self.fitness, together
            )
        except torch.OutOfMemoryError as failure:
            raise ValueError(
                f"slopes of {self.runner.micro_batch} x {trial.fidelity.length} tokens do not fit the device; lower "
                "evaluation.micro_batch, data.length or evaluation.memory, or search with sensitivities: measured"
            ) from failure
        seconds = time.perf_counter() - start
        if not found.finite:
            return Evaluation(trial, (), (), seconds, "a slope is not finite")
        return Evaluation(trial, (), (), seconds, slopes=found)

    def _together(self, tokens: int) -> int:
        """Micro-batches of so many tokens whose states fit in memory at once."""
        one = tokens * self.runner.hidden * self.runner.dtype.itemsize
        # Pinned memory comes in powers of two; two gradients of float32 and the dense model's states are kept as well.
        return max(1, self.memory // (2 * one * (len(self.runner.structure.blocks) + 6)))
