"""Allocation under any limits: the profiles of smallest summed error."""

from ...spaces.space import Limits, Profile, Space
from .allocation import Errors, PredictedFront, allocate, allocate_limits
from .moves import dress


class Allocator:
    """Finds the profiles of smallest summed error within limits.

    The front of one kind of cost serves all limits on this kind, and is computed once.

    Args:
        space: space of the profiles.
        errors: error of every level of every unit; infinite for a level that must not be chosen.
        max_states: about the number of different costs that a front tells apart (see `allocate`).
    """

    def __init__(self, space: Space, errors: Errors, max_states: int = 2**18) -> None:
        self._space = space
        self._errors = errors
        self._max_states = max_states
        self._fronts: dict[str, PredictedFront] = {}

    def best(self, limits: Limits) -> Profile:
        """Return the best profile within the limits; units of a dropped branch have the levels of the uniform profile.

        Raises:
            ValueError: no profile is within the limits.
        """
        if len(limits) > 1:
            profile = allocate_limits(self._space, self._errors, limits)
        else:
            ((kind, limit),) = limits.items()
            profile = self.front(kind).best(limit)
        return dress(self._space, profile, self._space.uniform(limits))

    def gap(self, limits: Limits) -> float | None:
        """Return an upper bound of how much smaller the summed error of another profile than `best` could be.

        It is None where `best` is proved to have the smallest error. It is also None under several limits, where
        integer programming allocates.
        """
        if len(limits) > 1:
            return None
        ((kind, limit),) = limits.items()
        front = self.front(kind)
        return None if front.exact else front.gap(limit)

    def front(self, kind: str) -> PredictedFront:
        """Return the predicted front of one kind of cost."""
        if kind not in self._fronts:
            self._fronts[kind] = allocate(self._space, self._errors, kind, self._max_states)
        return self._fronts[kind]
