"""The best profiles that additive errors predict, under any limits."""

from ...spaces.space import Limits, Profile, Space
from .allocation import Errors, PredictedFront, allocate, allocate_limits
from .moves import dress


class Allocator:
    """Profiles of smallest summed error.

    The front of a cost kind serves all of its limits and is made once.

    Args:
        space: of the profiles.
        errors: per unit and level; infinite for a level that must not be chosen.
        max_states: of each front (`allocate`).
    """

    def __init__(self, space: Space, errors: Errors, max_states: int = 2**18) -> None:
        self._space = space
        self._errors = errors
        self._max_states = max_states
        self._fronts: dict[str, PredictedFront] = {}

    def best(self, limits: Limits) -> Profile:
        """The best profile; units under a dropped branch as in uniform.

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
        """How much lower at most the summed error of another profile could be.

        None where `best` is proved the least, and under several limits, where integer programming allocates.
        """
        if len(limits) > 1:
            return None
        ((kind, limit),) = limits.items()
        front = self.front(kind)
        return None if front.exact else front.gap(limit)

    def front(self, kind: str) -> PredictedFront:
        """Everything that one limit on this kind of cost could lead to."""
        if kind not in self._fronts:
            self._fronts[kind] = allocate(self._space, self._errors, kind, self._max_states)
        return self._fronts[kind]
