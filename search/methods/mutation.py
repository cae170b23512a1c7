"""EvoPress's mutations of a profile: level switches and drop moves that keep within the limits."""

from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np

from ...spaces.space import Limits, Profile, Space
from ..allocation.moves import Bools, Ints, Moves, as_profile, layer_type
from .state import State, pick, sample

Groups = Literal["size", "name", "type", "none"]

PATIENCE = 100
"""Number of draws in a row without a new profile after which `distinct` stops, as a tiny space may hold no more."""


def distinct(
    space: Space, draw: Callable[[], Profile | None], wanted: int, known: Iterable[Profile] = ()
) -> list[Profile]:
    """Draw up to `wanted` profiles that build different models, none of them among `known`.

    There are fewer if `PATIENCE` draws in a row give no new model. A draw of None counts as such.
    """
    seen = {space.canonical(profile) for profile in known}
    found: list[Profile] = []
    misses = 0
    while len(found) < wanted and misses < PATIENCE:
        profile = draw()
        if profile is None or (key := space.canonical(profile)) in seen:
            misses += 1
            continue
        misses = 0
        seen.add(key)
        found.append(profile)
    return found


class Mutation:
    """Random mutations of a profile that keep within the limits.

    A level switch raises one unit by one step and lowers other units of its group until the limits hold again. Where
    all steps cost the same, it lowers exactly one unit. Then it raises unchanged units of the group while there is
    room. A drop move swaps a dropped branch with a kept one. In a space that also has linear layers, a drop move may
    instead only drop or only restore a branch, and the levels of linear layers change to balance the cost.

    Args:
        space: space of the profiles.
        limits: limits that the offspring keep.
        groups: units between which a switch takes place: units of equal cost tables (`size`), of one module name
            (`name`), of one branch type (`type`), or any units (`none`).
        balanced: whether branches are swapped within one branch type only.
        most: largest number of moves per offspring; the number is the smaller of two draws from 1..most.

    Attributes:
        only_drops: whether all units of the space are branches that can be dropped.

    References:
        EvoPress (arXiv 2410.14649), section 3 and appendix A.
    """

    def __init__(self, space: Space, limits: Limits, groups: Groups, balanced: bool, most: int) -> None:
        self.space = space
        self.moves = Moves(space, limits)
        self.balanced = balanced
        self.most = most
        self._droppable_U = self.moves.droppable_U
        self._linear_U = ~self._droppable_U
        self._linear = np.flatnonzero(self._linear_U)
        self._has_drops = bool(self._droppable_U.any())
        self.only_drops = bool(self._droppable_U.all())
        self._group_U = self._numbered([self._group(u, groups) for u in range(len(space.units))])
        self._branch_U = self._numbered([unit.branch for unit in space.units])

    def _group(self, unit: int, groups: Groups) -> object:
        found = self.space.units[unit]
        match groups:
            case "size":
                return tuple(tuple(level.costs[k] for k in self.moves.kinds) for level in found.levels)
            case "name":
                return layer_type(self.space, unit)
            case "type":
                return found.branch
            case "none":
                return None

    def _numbered(self, keys: list[object]) -> Ints:
        order = {key: n for n, key in enumerate(dict.fromkeys(keys))}
        return np.array([order[key] for key in keys], np.int64)

    def offspring(self, parent: Profile, wanted: int, rng: np.random.Generator) -> list[Profile]:
        """Return up to `wanted` mutants within the limits that build different models, none of them the parent's."""
        state = State.at(self.moves, np.array(parent, np.int64))
        return distinct(self.space, lambda: self._mutate(state.copy(), rng), wanted, [parent])

    def _mutate(self, state: State, rng: np.random.Generator) -> Profile | None:
        """Return a mutant after min(U{1..most}, U{1..most}) moves, or None if one of the moves was impossible."""
        for _ in range(min(rng.integers(1, self.most + 1), rng.integers(1, self.most + 1))):
            if not self._move(state, rng):
                return None
        return as_profile(state.levels_U) if state.fits else None

    def _move(self, state: State, rng: np.random.Generator) -> bool:
        """Change the state by one move. Return False if it was impossible; the state is then no longer usable."""
        if self.only_drops:
            return self._swap(state, rng)
        if self._has_drops and rng.random() < 0.5:
            return self._restructure(state, rng)
        return self._switch(state, rng)

    def _switch(self, state: State, rng: np.random.Generator) -> bool:
        open_units = self._linear
        if not self.moves.flat:
            open_units = (self._linear_U & self.moves.active(state.levels_U)).nonzero()[0]
        if not len(open_units):
            return False
        members_U = self._linear_U & (self._group_U == self._group_U[pick(open_units, rng)])
        before_U = state.levels_U.copy()
        if not state.move_one(state.up_LU, rng, members_U):
            return False
        return self._rebalance(state, before_U, members_U, rng)

    def _rebalance(self, state: State, before_U: Ints, allowed_U: Bools, rng: np.random.Generator) -> bool:
        """Lower units until the limits hold, then raise units while there is room.

        Only those allowed units change that still have their level of `before_U`. Return False if the limits cannot be
        met.
        """
        if not state.lower(rng, allowed_U & (before_U == state.levels_U)):
            return False
        state.fill(rng, allowed_U & (before_U == state.levels_U))
        return True

    def _swap(self, state: State, rng: np.random.Generator) -> bool:
        """Restore a dropped branch and drop a kept one, in a space of branches only.

        Where drops are not balanced, other branches change afterwards until the limits hold again.
        """
        pair = self._pair(state.levels_U, rng)
        if pair is None:
            return False
        before_U = state.levels_U.copy()
        self._exchange(state, *pair)
        return self.balanced or self._rebalance(state, before_U, self._droppable_U, rng)

    def _restructure(self, state: State, rng: np.random.Generator) -> bool:
        """Drop, restore or swap a branch in a space that also has linear layers, whose levels then balance the cost."""
        is_dropped_U = self.moves.dropped(state.levels_U)
        dropped = np.flatnonzero(self._droppable_U & is_dropped_U)
        kept = np.flatnonzero(self._droppable_U & ~is_dropped_U)
        pair = self._pair(state.levels_U, rng)
        ways = ["drop"] * bool(len(kept)) + ["revive"] * bool(len(dropped)) + ["swap"] * (pair is not None)
        way = ways[rng.integers(len(ways))]
        before_U = state.levels_U.copy()
        if way == "drop":
            unit = pick(kept, rng)
            state.move(unit, self._level(unit, drop=True))
        elif way == "revive":
            unit = pick(dropped, rng)
            state.move(unit, self._level(unit, drop=False))
        else:
            assert pair is not None
            self._exchange(state, *pair)
        return self._rebalance(state, before_U, self._linear_U, rng)

    def _exchange(self, state: State, revived: int, dropped: int) -> None:
        state.move(revived, self._level(revived, drop=False))
        state.move(dropped, self._level(dropped, drop=True))

    def _pair(self, levels_U: Ints, rng: np.random.Generator) -> tuple[int, int] | None:
        """Return the indices of a random dropped branch and of a random kept one, or None if there is no such pair.

        Where drops are balanced, both are of one branch type.
        """
        is_dropped_U = self.moves.dropped(levels_U)
        dropped_U, kept_U = self._droppable_U & is_dropped_U, self._droppable_U & ~is_dropped_U
        if self.balanced:
            branches = [b for b in self._types() if (dropped_U & b).any() and (kept_U & b).any()]
            if not branches:
                return None
            branch_U = branches[rng.integers(len(branches))]
            dropped_U, kept_U = dropped_U & branch_U, kept_U & branch_U
        dropped, kept = np.flatnonzero(dropped_U), np.flatnonzero(kept_U)
        if not len(dropped) or not len(kept):
            return None
        return pick(dropped, rng), pick(kept, rng)

    def _types(self) -> list[Bools]:
        numbers = dict.fromkeys(self._branch_U[self._droppable_U].tolist())
        return [self._droppable_U & (self._branch_U == n) for n in numbers]

    def _level(self, unit: int, *, drop: bool) -> int:
        """Return the index of a branch's level `drop` if `drop` is set, else of its most expensive level."""
        return int(self.moves.drop_UL[unit].argmax()) if drop else self.moves.dearest[unit]

    def is_balanced(self, profile: Profile) -> bool:
        """Return whether equally many branches of each branch type are dropped."""
        is_dropped_U = self.moves.dropped(np.array(profile))
        return len({int((is_dropped_U & type_U).sum()) for type_U in self._types()}) <= 1

    def balanced_drops(self) -> int | None:
        """Return the smallest number of drops, equal for all branch types, that can meet the limits, or None."""
        kept_U = np.array(self.moves.dearest, np.int64)
        gain_UL = self.moves.direction(self.moves.deltas(kept_U))
        gain_U = np.where(self.moves.drop_UL, gain_UL, 0.0).min(axis=1)
        for drops in range(min(int(t.sum()) for t in self._types()) + 1):
            levels_U = kept_U.copy()
            for type_U in self._types():
                units = np.flatnonzero(type_U)
                for unit in units[np.argsort(gain_U[units], kind="stable")][:drops]:
                    levels_U[unit] = self._level(unit, drop=True)
            if self.moves.fits(levels_U):
                return drops
        return None

    def random_states(self, wanted: int, rng: np.random.Generator) -> list[Profile]:
        """Return up to `wanted` random profiles within the limits, all of different models.

        In a space of branches only, with balanced drops, each profile drops equally many branches of each type.
        """
        drops = self.balanced_drops() if self.balanced and self.only_drops else None

        def draw() -> Profile | None:
            profile = sample(self.moves, rng) if drops is None else self._balanced_state(drops, rng)
            return profile if self.moves.fits(np.array(profile, np.int64)) else None

        return distinct(self.space, draw, wanted)

    def _balanced_state(self, drops: int, rng: np.random.Generator) -> Profile:
        levels_U = np.array(self.moves.dearest, np.int64)
        for type_U in self._types():
            for unit in rng.choice(np.flatnonzero(type_U), size=drops, replace=False):
                levels_U[unit] = self._level(unit, drop=True)
        return as_profile(levels_U)
