"""EvoPress's mutations: level switches and drop swaps that never leave the budget."""

from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np

from ..spaces.space import Limits, Profile, Space
from .moves import Bools, Ints, Moves, as_profile, layer_type

Groups = Literal["size", "name", "type", "none"]

PATIENCE = 100
"""Draws in a row without a new profile before fewer are taken, so that a tiny space ends instead of looping."""


def distinct(
    space: Space, draw: Callable[[], Profile | None], wanted: int, known: Iterable[Profile] = ()
) -> list[Profile]:
    """At most `wanted` draws that build different models, none of them among `known`."""
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
    """Offspring of a profile within the limits.

    A level switch raises one unit by a step, lowers others of its group until the limits hold again (exactly
    one where the steps cost the same), then spends what is left on units not touched. A drop move swaps a
    dropped branch with a kept one; beside linear units it may also only drop or only revive, and the levels of
    the linear units make up for it.

    Args:
        space: of the profiles.
        limits: that offspring keep.
        groups: switches stay inside units of equal cost tables (`size`), of one module name (`name`), of one
            branch type (`type`), or go anywhere (`none`).
        balanced: drops are swapped inside one branch type only.
        most: switches per offspring are the smaller of two draws from 1..most.

    References:
        EvoPress (arXiv 2410.14649), section 3 and appendix A.
    """

    def __init__(self, space: Space, limits: Limits, groups: Groups, balanced: bool, most: int) -> None:
        self.space = space
        self.moves = Moves(space, limits)
        self.balanced = balanced
        self.most = most
        self._droppable_U = self.moves.droppable_U
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
        """At most `wanted` different models that differ from the parent, all within the limits."""
        return distinct(self.space, lambda: self.mutate(parent, rng), wanted, [parent])

    def mutate(self, parent: Profile, rng: np.random.Generator) -> Profile | None:
        """One mutant after min(U{1..most}, U{1..most}) moves; None where a move found no way."""
        levels_U: Ints | None = np.array(parent, np.int64)
        for _ in range(int(rng.integers(1, self.most + 1, size=2).min())):
            if levels_U is None:
                return None
            levels_U = self._move(levels_U, rng)
        return as_profile(levels_U) if levels_U is not None and self.moves.fits(levels_U) else None

    def _move(self, levels_U: Ints, rng: np.random.Generator) -> Ints | None:
        if self.only_drops:
            return self._swap(levels_U, rng)
        if self._droppable_U.any() and rng.random() < 0.5:
            return self._restructure(levels_U, rng)
        return self._switch(levels_U, rng)

    def _switch(self, levels_U: Ints, rng: np.random.Generator) -> Ints | None:
        up_UL = self.moves.steps(levels_U) & (self.moves.direction(self.moves.deltas(levels_U)) > 0)
        up_UL &= ~self._droppable_U[:, None]
        open_units = np.flatnonzero(~self._droppable_U & self.moves.active(levels_U))
        if not len(open_units):
            return None
        group = self._group_U[open_units[rng.integers(len(open_units))]]
        raisable = np.flatnonzero(up_UL.any(axis=1) & (self._group_U == group))
        if not len(raisable):
            return None
        unit = int(raisable[rng.integers(len(raisable))])
        raised_U = levels_U.copy()
        options = np.flatnonzero(up_UL[unit])
        raised_U[unit] = options[rng.integers(len(options))]
        return self._rebalance(levels_U, raised_U, ~self._droppable_U & (self._group_U == group), rng)

    def _rebalance(
        self, before_U: Ints, after_U: Ints, allowed_U: Bools, rng: np.random.Generator
    ) -> Ints | None:
        """Lower, then raise, allowed units that are as they were in `before_U`."""
        lowered_U = self.moves.lower(after_U, rng, allowed_U & (before_U == after_U))
        if lowered_U is None:
            return None
        return self.moves.fill(lowered_U, rng, allowed_U & (before_U == lowered_U))

    def _swap(self, levels_U: Ints, rng: np.random.Generator) -> Ints | None:
        """Revive one dropped branch and drop others for it, in a space of nothing but branches."""
        pair = self._pair(levels_U, rng)
        if pair is None:
            return None
        revived, dropped = pair
        swapped_U = self._set(self._set(levels_U, revived, drop=False), dropped, drop=True)
        if self.balanced:
            return swapped_U
        return self._rebalance(levels_U, swapped_U, self._droppable_U, rng)

    def _restructure(self, levels_U: Ints, rng: np.random.Generator) -> Ints | None:
        """Drop, revive or swap branches in a joint space; linear units make up for the cost."""
        is_dropped_U = self.moves.drop_UL[np.arange(len(levels_U)), levels_U]
        dropped = np.flatnonzero(self._droppable_U & is_dropped_U)
        kept = np.flatnonzero(self._droppable_U & ~is_dropped_U)
        pair = self._pair(levels_U, rng)
        ways = ["drop"] * bool(len(kept)) + ["revive"] * bool(len(dropped)) + ["swap"] * (pair is not None)
        way = ways[rng.integers(len(ways))]
        if way == "drop":
            changed_U = self._set(levels_U, int(kept[rng.integers(len(kept))]), drop=True)
        elif way == "revive":
            changed_U = self._set(levels_U, int(dropped[rng.integers(len(dropped))]), drop=False)
        else:
            assert pair is not None
            changed_U = self._set(self._set(levels_U, pair[0], drop=False), pair[1], drop=True)
        return self._rebalance(levels_U, changed_U, ~self._droppable_U, rng)

    def _pair(self, levels_U: Ints, rng: np.random.Generator) -> tuple[int, int] | None:
        """A random dropped branch and a random kept one, of one type where drops are balanced."""
        is_dropped_U = self.moves.drop_UL[np.arange(len(levels_U)), levels_U]
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
        return int(dropped[rng.integers(len(dropped))]), int(kept[rng.integers(len(kept))])

    def _types(self) -> list[Bools]:
        numbers = dict.fromkeys(self._branch_U[self._droppable_U].tolist())
        return [self._droppable_U & (self._branch_U == n) for n in numbers]

    def _set(self, levels_U: Ints, unit: int, *, drop: bool) -> Ints:
        """A copy with one branch dropped, or at its dearest level that is not `drop`."""
        changed_U = levels_U.copy()
        drops = np.flatnonzero(self.moves.drop_UL[unit])
        changed_U[unit] = drops[0] if drop else self.moves.dearest[unit]
        return changed_U

    def is_balanced(self, profile: Profile) -> bool:
        """Whether all branch types have equally many drops."""
        is_dropped_U = self.moves.drop_UL[np.arange(len(profile)), np.array(profile)]
        return len({int((is_dropped_U & type_U).sum()) for type_U in self._types()}) <= 1

    def balanced_drops(self) -> int | None:
        """Drops per branch type, equal for all, that can just meet the limits; None if no number can."""
        kept_U = np.array(self.moves.dearest, np.int64)
        gain_UL = self.moves.direction(self.moves.deltas(kept_U))
        gain_U = np.where(self.moves.drop_UL, gain_UL, 0.0).min(axis=1)
        for drops in range(min(int(t.sum()) for t in self._types()) + 1):
            levels_U = kept_U
            for type_U in self._types():
                units = np.flatnonzero(type_U)
                for unit in units[np.argsort(gain_U[units], kind="stable")][:drops]:
                    levels_U = self._set(levels_U, int(unit), drop=True)
            if self.moves.fits(levels_U):
                return drops
        return None

    def random_states(self, wanted: int, rng: np.random.Generator) -> list[Profile]:
        """At most `wanted` different random profiles within the limits.

        In a space of nothing but branches with balanced drops they have equally many drops of each type.
        """
        drops = self.balanced_drops() if self.balanced and self.only_drops else None

        def draw() -> Profile | None:
            profile = self.moves.sample(rng) if drops is None else self._balanced_state(drops, rng)
            return profile if self.moves.fits(np.array(profile, np.int64)) else None

        return distinct(self.space, draw, wanted)

    def _balanced_state(self, drops: int, rng: np.random.Generator) -> Profile:
        levels_U = np.array(self.moves.dearest, np.int64)
        for type_U in self._types():
            for unit in rng.choice(np.flatnonzero(type_U), size=drops, replace=False):
                levels_U = self._set(levels_U, int(unit), drop=True)
        return as_profile(levels_U)
