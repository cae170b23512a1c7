"""Profiles that are measured whatever the method: the baselines of every budget."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...evaluators.trial import Evaluation, Fidelity, Trial
from ...spaces.space import Profile


class FixedSearcher:
    """Asks given profiles once, at the archive's fidelity.

    Args:
        profiles: profiles to measure, in order.
        fidelity: sequences on which the archive compares profiles.
    """

    leg = 0
    final = True

    def __init__(self, profiles: Sequence[Profile], fidelity: Fidelity) -> None:
        unique = dict.fromkeys(profiles)
        self.trials = [Trial(i, profile, fidelity) for i, profile in enumerate(unique)]
        self.done = False

    def ask(self) -> list[Trial]:
        """Return all profiles at the first call, then nothing."""
        return [] if self.done else list(self.trials)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Finish; the archive keeps the values."""
        del evaluations
        self.done = True

    def state_dict(self) -> dict[str, Any]:
        """Whether the answers came."""
        return {"done": self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.done = bool(state["done"])
