"""The interface that the searchers of all search methods follow."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ...evaluators.trial import Evaluation, Trial


class Searcher(Protocol):
    """Proposes trials and learns from their evaluations.

    After `ask`, `tell` must be given the evaluations of the trials in their order before `ask` is called again. The
    state between the two calls is part of `state_dict`, so that a restored searcher asks the same trials again.

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
        """Return the next trials, or an empty list when the search is finished."""

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Take in the evaluations of the trials of the last `ask`, in their order."""

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state of the search as JSON values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state_dict` returned, so that the search continues exactly from there."""
