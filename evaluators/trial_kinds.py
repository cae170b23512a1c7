"""The registry of the kinds of trials."""

from .slopes.slope_trial import SlopeTrial
from .trial import Trial

KINDS: tuple[type[Trial], ...] = (Trial, SlopeTrial)
"""All kinds of trials; checkpoints store the place of a trial's kind in this order."""
