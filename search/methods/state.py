"""A profile on the move: using a budget up with random single moves.

Array names carry their axes: K cost kinds, U units, L levels (short ladders padded).
"""

from dataclasses import dataclass
from functools import reduce
from operator import le

import numpy as np

from ...spaces.space import Profile
from ..allocation.moves import Bools, Ints, Moves, Open, as_profile


@dataclass(slots=True)
class State:
    """Levels, and what follows from them for all single moves; a move changes that of its unit, parent and children.

    The level axis comes before the units, along which numpy works fastest. A move that is not open changes nothing.

    Attributes:
        moves: tables of the space.
        open: which moves are.
        levels_U: the profile, changed by each move.
        room_K: what each limit leaves; below 0 where it is exceeded.
        delta_KLU: change of cost of each move.
        up_LU: moves that go up.
    """

    moves: Moves
    open: Open
    levels_U: Ints
    room_K: list[int]
    delta_KLU: Ints
    up_LU: Bools

    @classmethod
    def at(cls, moves: Moves, levels_U: Ints, *, far: bool = False) -> "State":
        """The state at some levels, with single steps open, or (`far`) moves to any level."""
        opened = moves.far if far else moves.near
        room_K = (moves.limit_K - moves.total(levels_U)).tolist()
        delta_KUL = moves.deltas(levels_U) * opened.open_ULL[np.arange(len(levels_U)), levels_U]
        delta_KLU = np.ascontiguousarray(delta_KUL.transpose(0, 2, 1))
        return cls(moves, opened, levels_U.copy(), room_K, delta_KLU, moves.direction(delta_KLU) > 0)

    def copy(self) -> "State":
        """Another state that moves by itself."""
        delta_KLU, up_LU = self.delta_KLU.copy(), self.up_LU.copy()
        return State(self.moves, self.open, self.levels_U.copy(), self.room_K, delta_KLU, up_LU)

    @property
    def fits(self) -> bool:
        """Whether no limit is exceeded."""
        return min(self.room_K) >= 0

    def _fitting(self) -> Bools:
        """Shape (L, U): moves after which all limits hold."""
        found: Bools = self.delta_KLU[0] <= self.room_K[0]
        for k in range(1, len(self.room_K)):
            found &= self.delta_KLU[k] <= self.room_K[k]
        return found

    def raises(self) -> Bools:
        """Shape (L, U): moves up that keep within the limits."""
        found: Bools = self._fitting() & self.up_LU
        return found

    def lowerings(self) -> Bools:
        """Shape (L, U): moves that lower what exceeds its limit; no exceeded kind may rise.

        Where nothing is exceeded, all that go down.
        """
        exceeded = [delta_LU for delta_LU, room in zip(self.delta_KLU, self.room_K, strict=True) if room < 0]
        changes = exceeded or [self.moves.direction(self.delta_KLU)]
        none_rises: Bools = reduce(np.logical_and, [change_LU <= 0 for change_LU in changes])
        one_falls: Bools = reduce(np.logical_or, [change_LU < 0 for change_LU in changes])
        return none_rises & one_falls

    def lower(self, rng: np.random.Generator, allowed_U: Bools | None = None) -> bool:
        """Lower random units until within the limits; False if no move is left or none leads there.

        A move that is enough alone goes before those that are not, so few units change. Costs that oppose each
        other could be traded for ever, so the number of moves is bounded.
        """
        for _ in range(self.moves.most_lowerings):
            if self.fits:
                return True
            if not (
                self.move_one(self._fitting(), rng, allowed_U)
                or self.move_one(self.lowerings(), rng, allowed_U)
            ):
                return False
        return False

    def fill(self, rng: np.random.Generator, allowed_U: Bools | None = None) -> None:
        """Raise random units while that keeps within the limits."""
        while self._has_room and self.move_one(self.raises(), rng, allowed_U):
            pass

    @property
    def _has_room(self) -> bool:
        """False where every move up surely exceeds a limit."""
        return all(map(le, self.open.least_K, self.room_K))

    def move_one(self, choice_LU: Bools, rng: np.random.Generator, allowed_U: Bools | None = None) -> bool:
        """Move a random unit, uniform over the units that can, to a random level of those open to it; False if none can."""
        can_U: Bools = np.logical_or.reduce(choice_LU)
        units = (can_U if allowed_U is None else can_U & allowed_U).nonzero()[0]
        if not len(units):
            return False
        unit = pick(units, rng)
        self.move(unit, pick(choice_LU[:, unit].nonzero()[0], rng))
        return True

    def move(self, unit: int, level: int) -> None:
        """Move one unit to a level that is open to it."""
        spent_K = self.delta_KLU[:, level, unit].tolist()
        self.room_K = [room - spent for room, spent in zip(self.room_K, spent_K, strict=True)]
        self.levels_U[unit] = level
        for other in (unit, *self.moves.relatives[unit]):
            self.delta_KLU[:, :, other], self.up_LU[:, other] = self._of(other)

    def _of(self, unit: int) -> tuple[Ints, Bools]:
        """What the moves of one unit change, shape (K, L), and which of them go up."""
        moves, level = self.moves, self.levels_U[unit]
        delta_KL, up_L = self.open.delta_KULL[:, unit, level], self.open.up_ULL[unit, level]
        parent, children = moves.parent_U[unit], self.moves.space.children[unit]
        if parent >= 0 and moves.drop_UL[parent, self.levels_U[parent]]:
            return np.zeros_like(delta_KL), np.zeros_like(up_L)
        if not children:
            return delta_KL, up_L
        inside_K = moves.cost_KUL[:, children, self.levels_U[list(children)]].sum(axis=1)
        change_L = (int(moves.drop_UL[unit, level]) - moves.drop_UL[unit]) * self.open.open_ULL[unit, level]
        delta_KL = delta_KL + inside_K[:, None] * change_L
        return delta_KL, moves.direction(delta_KL) > 0


def sample(moves: Moves, rng: np.random.Generator) -> Profile:
    """A random profile within the limits: every unit uniform over its levels, lowered, then filled."""
    state = State.at(moves, rng.integers(moves.exists_UL.sum(axis=1)), far=True)
    if state.lower(rng):
        levels_U = state.levels_U
    else:
        limits = dict(zip(moves.kinds, moves.limit_K.tolist(), strict=True))
        levels_U = np.array(moves.space.cheapest(limits), np.int64)
    state = State.at(moves, levels_U)
    state.fill(rng)
    return as_profile(state.levels_U)


def pick(items_N: Ints, rng: np.random.Generator) -> int:
    """One of at least one item, uniform; a single item takes no draw."""
    return int(items_N[rng.integers(len(items_N)) if len(items_N) > 1 else 0])
