"""A map from a few real parameters, by depth and layer type, to a profile within the budget."""

from collections.abc import Mapping

import numpy as np

from ...spaces.space import Limits, Profile, Space
from ..allocation.moves import Ints, Moves, as_profile, layer_type, relative_cost


class Projection:
    """A function from parameters to profiles, by way of a priority for every unit.

    The priority of a unit is the sum of a piecewise linear curve over the depth of the model, at the unit's block, and
    an offset of the unit's layer type. The relative cost of a level is log2 of its cost divided by that of the unit's
    most expensive level, in the first limited kind of cost. A unit of priority p takes the most expensive level of
    relative cost at most p + t. The threshold t is common to all units and as high as the limits allow. The remaining
    budget goes to the next levels in the same order. A branch is kept when p + t is at least the smallest relative cost
    of its units minus 1. The zero vector stands for the uniform profile.

    Args:
        space: space of the profiles.
        limits: limits that the profiles keep.
        knots: largest number of knots of the curve over the blocks.

    Attributes:
        names: names of the parameters, `depth.0`, `depth.1`, ... and then `type.<layer type>`.
    """

    def __init__(self, space: Space, limits: Limits, knots: int) -> None:
        self.space = space
        self._limits = dict(limits)
        self._moves = Moves(space, limits)
        blocks = [unit.block for unit in space.units]
        knots = min(knots, len(set(blocks)))
        last = max(max(blocks), 1)
        self._depth_U = np.array([max(b, 0) / last for b in blocks])
        self._knot_at = np.linspace(0.0, 1.0, knots)
        types = [layer_type(space, u) for u in range(len(space.units))]
        known = list(dict.fromkeys(types))
        self._type_U = np.array([known.index(t) for t in types])
        self.names = [f"depth.{k}" for k in range(knots)] + [f"type.{t}" for t in known]
        self._ladders = [self._ladder(u) for u in range(len(space.units))]

    def _ladder(self, unit: int) -> list[tuple[float, int]]:
        """Return the levels of a unit in order of cost, each as its relative cost and its index.

        The unit takes a level if its priority plus the threshold is at least the relative cost. The first level is the
        one that a unit begins with; it is `drop` for a branch.
        """
        levels = self.space.units[unit].levels
        kinds = [*self._moves.kinds, *self.space.kinds]
        order = sorted(
            range(len(levels)),
            key=lambda n: (levels[n].label != "drop", *(levels[n].costs[kind] for kind in kinds), n),
        )
        cost = [levels[n].costs[kinds[0]] for n in order]
        if self.space.units[unit].droppable:
            inside = [self._share(child) for child in self.space.children[unit]]
            return [(min(inside, default=0.0) - 1.0, n) for n in order]
        return [(relative_cost(c, cost[-1]), n) for c, n in zip(cost, order, strict=True)]

    def _share(self, unit: int) -> float:
        costs = [level.costs[self._moves.kinds[0]] for level in self.space.units[unit].levels]
        return relative_cost(min(costs), max(costs))

    def priorities(self, parameters: Mapping[str, float]) -> np.ndarray:
        """Return the priority of each unit, (U,), in log2 of cost."""
        values = np.array([parameters[name] for name in self.names])
        knots, offsets = values[: len(self._knot_at)], values[len(self._knot_at) :]
        curve_U = np.interp(self._depth_U, self._knot_at, knots)
        return np.asarray(curve_U + offsets[self._type_U])

    def profile(self, parameters: Mapping[str, float]) -> Profile:
        """Return the profile within the limits that the parameters stand for; equal parameters give equal profiles."""
        if not any(parameters[name] for name in self.names):
            return self.space.uniform(self._limits)
        priority_U = self.priorities(parameters)
        steps = sorted(
            (threshold - priority_U[u], u, place, level)
            for u, ladder in enumerate(self._ladders)
            for place, (threshold, level) in enumerate(ladder[1:], start=1)
        )
        levels_U = np.array([ladder[0][1] for ladder in self._ladders], np.int64)
        if not self._moves.fits(levels_U):
            levels_U = np.array(self.space.cheapest(self._limits), np.int64)
        return self._climb(levels_U, [(u, place, level) for _, u, place, level in steps])

    def _climb(self, levels_U: Ints, steps: list[tuple[int, int, int]]) -> Profile:
        """Take in order every step (unit, place in its ladder, level) that keeps within the limits and goes up."""
        place_of = [{level: place for place, (_, level) in enumerate(ladder)} for ladder in self._ladders]
        room_K = self._moves.limit_K - self._moves.total(levels_U)
        for unit, place, level in steps:
            if place <= place_of[unit][int(levels_U[unit])]:
                continue
            delta_K = self._delta(levels_U, unit, level)
            if (delta_K <= room_K).all():
                levels_U[unit] = level
                room_K = room_K - delta_K
        return as_profile(levels_U)

    def _delta(self, levels_U: Ints, unit: int, level: int) -> Ints:
        """Return the change of cost (K,) when one unit moves to a level; 0 for a unit under a dropped branch."""
        moves = self._moves
        parent = int(moves.parent_U[unit])
        if parent >= 0 and moves.drop_UL[parent, levels_U[parent]]:
            return np.zeros(len(moves.kinds), np.int64)
        here = int(levels_U[unit])
        delta_K: Ints = moves.cost_KUL[:, unit, level] - moves.cost_KUL[:, unit, here]
        change = int(moves.drop_UL[unit, here]) - int(moves.drop_UL[unit, level])
        for child in self.space.children[unit]:
            delta_K = delta_K + change * moves.cost_KUL[:, child, levels_U[child]]
        return delta_K
