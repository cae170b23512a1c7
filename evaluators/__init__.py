"""Evaluation of profiles: calibration data, the block runner, fitness, the population evaluator and the journal."""

from .trial import Evaluation, Evaluator, Fidelity, Trial

__all__ = ["Evaluation", "Evaluator", "Fidelity", "Trial"]
