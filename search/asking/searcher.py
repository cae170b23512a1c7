"""Who proposes: the protocol that every search method follows."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ...evaluators.trial import Evaluation, Trial


class Searcher(Protocol):
    """Proposes trials and learns from their evaluations.

    `ask` is called again only after `tell` has had the evaluations of its trials, in their order. The state
    between the two is part of `state_dict`, so that a restored searcher asks the same trials again.

    Attributes:
        leg: number of the method whose turn it is, in a series of methods.
        final: whether the last method's turn has come.
    """

    @property
    def leg(self) -> int:
        """The number of the method whose turn it is."""

    @property
    def final(self) -> bool:
        """Whether the last method's turn has come."""

    def ask(self) -> list[Trial]:
        """The next trials; an empty list when finished."""

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Learn the answers to the last `ask`, in its order."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what comes next, as JSON values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
