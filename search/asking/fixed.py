"""A searcher that only measures given profiles, such as the baselines of every budget."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...evaluators.trial import Evaluation, Fidelity, Trial
from ...spaces.space import Profile


class FixedSearcher:
    """Asks given profiles once, all at one fidelity.

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
        """Note that the answers came; the archive keeps their values."""
        del evaluations
        self.done = True

    def state_dict(self) -> dict[str, Any]:
        """Return whether the answers came, as JSON values."""
        return {"done": self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.done = bool(state["done"])
