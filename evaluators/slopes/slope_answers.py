"""Answers to trials that ask for slopes, within a limit of host memory."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from ...spaces.space import Space
from ..fitness import FitnessConfig
from ..runner.block_weights import BlockWeights
from ..runner.gradients import GradientRunner
from ..runner.runner import BlockRunner
from .batches import batches_of
from .slope_trial import SlopeEvaluation, SlopeTrial
from .slopes import level_slopes


@dataclass(frozen=True)
class SlopeAnswers:
    """Answers trials that ask for slopes in one space.

    Attributes:
        space: space of the profiles.
        weights: source of the weights of all levels and of the dense model.
        runner: runner of the model; must be a `GradientRunner` when a trial is answered.
        fitness: settings of the fitness whose slopes are computed.
        memory: bytes of host memory for hidden states; does not change a bit of the slopes.
    """

    space: Space
    weights: BlockWeights
    runner: BlockRunner
    fitness: FitnessConfig
    memory: int

    def answer(self, trial: SlopeTrial, tokens_NT: np.ndarray) -> SlopeEvaluation:
        """Compute the slopes around a trial's profile.

        Args:
            trial: trial that asks for slopes.
            tokens_NT: token ids of all N sequences of the trial's data set.

        Returns:
            The slopes over the trial's sequences, or an error if a slope is not finite.

        Raises:
            TypeError: the runner is not a `GradientRunner`.
            ValueError: one micro-batch of slopes does not fit the memory of the device.
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
            return SlopeEvaluation(trial, (), (), seconds, "a slope is not finite")
        return SlopeEvaluation(trial, (), (), seconds, slopes=found)

    def _together(self, tokens: int) -> int:
        """Return how many micro-batches of `tokens` tokens have hidden states that fit in memory at once."""
        one = tokens * self.runner.hidden * self.runner.dtype.itemsize
        # Twice, because pinned memory is allocated in powers of two. The 6 stand for the states after the last block,
        # the dense model's, and two gradients in float32.
        return max(1, self.memory // (2 * one * (len(self.runner.structure.blocks) + 6)))
