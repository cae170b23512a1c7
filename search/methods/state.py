"""A profile that random moves of one unit at a time bring within the limits and up to them.

Shapes: K cost kinds, U units, L levels of a unit, padded to the largest number of levels of any unit.
"""

from dataclasses import dataclass
from functools import reduce
from operator import le

import numpy as np

from ...spaces.space import Profile
from ..allocation.moves import Bools, Ints, Moves, Open, as_profile


@dataclass(slots=True)
class State:
    """A profile with the change of cost of every move of one unit, updated after each move.

    A move only affects the changes of its unit, and of this unit's parent and children. The axis of levels stands
    before that of units, because numpy is fastest along units.

    Attributes:
        moves: tables of the costs of the space.
        open: moves that are allowed, either single steps or moves to any level.
        levels_U: current level of every unit.
        room_K: limit minus current cost of each kind; negative where the limit is exceeded.
        delta_KLU: change of cost of each move, 0 for moves that are not open.
        up_LU: whether a move goes up, by the sum of its changes relative to the limits.
    """

    moves: Moves
    open: Open
    levels_U: Ints
    room_K: list[int]
    delta_KLU: Ints
    up_LU: Bools

    @classmethod
    def at(cls, moves: Moves, levels_U: Ints, *, far: bool = False) -> "State":
        """Return the state at the given levels, with single steps open, or with moves to any level if `far`."""
        opened = moves.far if far else moves.near
        room_K = (moves.limit_K - moves.total(levels_U)).tolist()
        delta_KUL = moves.deltas(levels_U) * opened.open_ULL[np.arange(len(levels_U)), levels_U]
        delta_KLU = np.ascontiguousarray(delta_KUL.transpose(0, 2, 1))
        return cls(moves, opened, levels_U.copy(), room_K, delta_KLU, moves.direction(delta_KLU) > 0)

    def copy(self) -> "State":
        """Return a copy that can move without changing this state."""
        delta_KLU, up_LU = self.delta_KLU.copy(), self.up_LU.copy()
        return State(self.moves, self.open, self.levels_U.copy(), self.room_K, delta_KLU, up_LU)

    @property
    def fits(self) -> bool:
        """Whether no limit is exceeded."""
        return min(self.room_K) >= 0

    def _fitting(self) -> Bools:
        """Return which moves (L, U) lead within all limits."""
        found: Bools = self.delta_KLU[0] <= self.room_K[0]
        for k in range(1, len(self.room_K)):
            found &= self.delta_KLU[k] <= self.room_K[k]
        return found

    def raises(self) -> Bools:
        """Return which moves (L, U) go up and lead within all limits."""
        found: Bools = self._fitting() & self.up_LU
        return found

    def lowerings(self) -> Bools:
        """Return which moves (L, U) lower a cost that exceeds its limit and raise no such cost.

        If no limit is exceeded, these are all moves that go down.
        """
        exceeded = [delta_LU for delta_LU, room in zip(self.delta_KLU, self.room_K, strict=True) if room < 0]
        changes = exceeded or [self.moves.direction(self.delta_KLU)]
        none_rises: Bools = reduce(np.logical_and, [change_LU <= 0 for change_LU in changes])
        one_falls: Bools = reduce(np.logical_or, [change_LU < 0 for change_LU in changes])
        return none_rises & one_falls

    def lower(self, rng: np.random.Generator, allowed_U: Bools | None = None) -> bool:
        """Move random units to cheaper levels until no limit is exceeded; return False if a limit is still exceeded.

        Moves that lead within all limits at once are preferred, so that few units change. A move that lowers one cost
        may raise another, so moves could alternate for ever. Therefore the number of moves is bounded.

        Args:
            rng: source of the random choices.
            allowed_U: whether each unit may move; by default all units may.
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
        """Move random allowed units to more expensive levels until no such move keeps within the limits."""
        while self._has_room and self.move_one(self.raises(), rng, allowed_U):
            pass

    @property
    def _has_room(self) -> bool:
        """Whether a move up may keep within the limits; False only if every move up exceeds one of them."""
        return all(map(le, self.open.least_K, self.room_K))

    def move_one(self, choice_LU: Bools, rng: np.random.Generator, allowed_U: Bools | None = None) -> bool:
        """Make a random one of the chosen moves (L, U). Return False if there is none.

        The unit is uniform over the allowed units that have a chosen move, then the level over the chosen ones.
        """
        can_U: Bools = np.logical_or.reduce(choice_LU)
        units = (can_U if allowed_U is None else can_U & allowed_U).nonzero()[0]
        if not len(units):
            return False
        unit = pick(units, rng)
        self.move(unit, pick(choice_LU[:, unit].nonzero()[0], rng))
        return True

    def move(self, unit: int, level: int) -> None:
        """Move one unit to a level that is open to this unit, and update all that depends on the unit."""
        spent_K = self.delta_KLU[:, level, unit].tolist()
        self.room_K = [room - spent for room, spent in zip(self.room_K, spent_K, strict=True)]
        self.levels_U[unit] = level
        for other in (unit, *self.moves.relatives[unit]):
            self.delta_KLU[:, :, other], self.up_LU[:, other] = self._of(other)

    def _of(self, unit: int) -> tuple[Ints, Bools]:
        """Return the change of cost (K, L) of every move of one unit, and which of these moves go up (L,)."""
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
    """Return a random profile within the limits.

    Every unit takes a level uniformly at random. Then random units are lowered until the limits hold, or the cheapest
    profile is taken if that fails. At last random units are raised while there is room.
    """
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
    """Return a uniformly random one of N >= 1 items; a single item needs no random number."""
    return int(items_N[rng.integers(len(items_N)) if len(items_N) > 1 else 0])
