"""A searcher that only measures given profiles, such as the baselines of every budget."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...evaluators.trial import Evaluation, Fidelity, Trial
from ...spaces.space import Profile


class FixedSearcher:
    """A searcher that asks for the fitness of given profiles once, all at one fidelity.

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
        """Return the trials of all profiles until their evaluations are told, then an empty list."""
        return [] if self.done else list(self.trials)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Note that the evaluations have arrived; the archive keeps their values."""
        del evaluations
        self.done = True

    def state_dict(self) -> dict[str, Any]:
        """Return as JSON values whether the evaluations were told."""
        return {"done": self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.done = bool(state["done"])
