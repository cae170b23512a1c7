"""The space of profiles: their costs, which of them are within limits, and which of them build the same model."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import getitem

import numpy as np

from .unit import Level, Unit

Profile = tuple[int, ...]
DENSE: Profile = ()
"""Stands for the uncompressed model, which may be no profile of the space.

Only `Space.canonical`, `Space.assignment` and `Space.key` accept it.
"""
Limits = Mapping[str, int]
"""Maps each limited cost kind to the largest cost allowed. A profile must meet all limits."""


@dataclass(frozen=True)
class Space:
    """The units that are searched, and the fixed cost of the rest of the model.

    The units form a tree of depth two. The parents are branches or blocks that can be dropped; their children are
    the units inside. A profile holds one level index per unit. A unit under a dropped parent is irrelevant: its level
    stays in the profile but has no effect on the model, the costs or the key.

    Attributes:
        units: all units of the space; each parent stands before its children.
        fixed: maps each cost kind to the cost of the parts of the model that are not searched.
        weights: number of linear weights, by which totals are divided to give bits per weight or sparsity.
        always: limits that are added to those of every budget.
    """

    units: tuple[Unit, ...]
    fixed: Mapping[str, int] = field(default_factory=dict)
    weights: int = 0
    always: Limits = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [unit.name for unit in self.units]
        if len(set(names)) != len(names):
            raise ValueError("unit names must be unique")
        for i, unit in enumerate(self.units):
            if not unit.levels:
                raise ValueError(f"unit {unit.name!r} has no levels; give it at least one")
            if unit.parent is not None and unit.parent >= i:
                raise ValueError(f"unit {unit.name!r} stands before its parent; put the parent first")

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The cost kinds, in the order in which the first level of the first unit lists them."""
        return tuple(self.units[0].levels[0].costs)

    @cached_property
    def _costs(self) -> dict[str, list[list[int]]]:
        """For each cost kind and each unit, the costs of the unit's levels.

        A final 0 follows in each row, so that the index -1 gives the cost of an irrelevant unit.
        """
        return {
            kind: [[*(v.costs[kind] for v in unit.levels), 0] for unit in self.units] for kind in self.kinds
        }

    @cached_property
    def _drops(self) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
        """For each droppable unit with children: its index, the index of its `drop` level, its children's indices."""
        return tuple(
            (i, self.units[i].index["drop"], children)
            for i, children in enumerate(self.children)
            if children and self.units[i].droppable
        )

    def _counted(self, profile: Profile) -> Sequence[int]:
        """Return the profile with the level index -1 for every irrelevant unit.

        Where no unit is irrelevant, this is the profile object itself.

        Raises:
            ValueError: the profile's length differs from the number of units.
        """
        if len(profile) != len(self.units):
            raise ValueError(
                f"the profile has {len(profile)} levels, but there are {len(self.units)} units; give one for each"
            )
        dropped = [children for unit, drop, children in self._drops if profile[unit] == drop]
        if not dropped:
            return profile
        counted = list(profile)
        for children in dropped:
            for child in children:
                counted[child] = -1
        return counted

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """For each unit, the indices of its children; empty for a unit that is nobody's parent."""
        found: list[list[int]] = [[] for _ in self.units]
        for i, unit in enumerate(self.units):
            if unit.parent is not None:
                found[unit.parent].append(i)
        return tuple(tuple(c) for c in found)

    def level(self, profile: Profile, unit: int) -> Level:
        """Return the level that `profile` gives to the unit with index `unit`."""
        return self.units[unit].levels[profile[unit]]

    def active(self, profile: Profile, unit: int) -> bool:
        """Tell whether the unit's level has an effect: the unit has no parent, or its parent is kept."""
        parent = self.units[unit].parent
        return parent is None or self.level(profile, parent).label != "drop"

    def cost(self, profile: Profile, kind: str) -> int:
        """Return the exact cost of the model that `profile` builds, including the fixed cost."""
        return self.fixed.get(kind, 0) + sum(map(getitem, self._costs[kind], self._counted(profile)))

    def costs(self, profile: Profile) -> dict[str, int]:
        """Return the exact cost of every kind."""
        return {kind: self.cost(profile, kind) for kind in self.kinds}

    def fits(self, profile: Profile, limits: Limits) -> bool:
        """Tell whether the profile exceeds none of the limits."""
        return all(self.cost(profile, kind) <= limit for kind, limit in limits.items())

    def canonical(self, profile: Profile) -> Profile:
        """Return the canonical profile among those that build the same model, with irrelevant units at level 0."""
        if profile == DENSE:
            return profile
        counted = self._counted(profile)
        return profile if counted is profile else tuple(max(level, 0) for level in counted)

    def extreme(self, kind: str, largest: bool = False) -> Profile:
        """Return a profile with the smallest (or `largest`) cost of one kind."""
        table = [np.array(row[:-1], np.int64) for row in self._costs[kind]]
        choose = np.argmax if largest else np.argmin
        profile = [int(choose(costs)) for costs in table]
        for i, children in enumerate(self.children):
            if children:
                inside = sum(int(table[c][profile[c]]) for c in children)
                drop = np.array([level.label == "drop" for level in self.units[i].levels])
                profile[i] = int(choose(table[i] + np.where(drop, 0, inside)))
        return tuple(profile)

    def check(self, limits: Limits) -> None:
        """Refuse a limit that no profile meets; each limit is checked without regard to the others.

        Raises:
            ValueError: a cost kind is unknown, or a limit is below the cost of the cheapest profile. The message for
                such a limit gives the range of costs.
        """
        for kind, limit in limits.items():
            if kind not in self.kinds:
                raise ValueError(f"cost {kind!r} is unknown here; this space has {', '.join(self.kinds)}")
            low, high = self.cost(self.extreme(kind), kind), self.cost(self.extreme(kind, True), kind)
            if limit < low:
                raise ValueError(
                    f"budget {limit} {kind} is below the cheapest profile ({low}; the most expensive is {high}); "
                    "raise the budget or add a cheaper level"
                )

    def uniform(self, limits: Limits) -> Profile:
        """Return the dearest uniform profile within `limits`, with units then raised in block order.

        In a uniform profile all branches are kept and all units have one label. A unit without that label takes the
        dearest level below it, or its cheapest level if there is none below. The dearest uniform profile within the
        limits is the start, or the cheapest profile if no uniform one is within them, so there is an answer for every
        budget that can be reached. Of uniform profiles with equal cost of the first kind, the one with the higher
        cost of the next kinds counts as dearer. What the limits leave is then spent by passes over the units in
        order; each pass raises a unit by one neighbouring level where that is within the limits.

        Raises:
            ValueError: no profile within the limits was found.
        """
        fitting = [profile for _, profile in self._uniforms if self.fits(profile, limits)]
        profile = fitting[-1] if fitting else self.cheapest(limits)
        while (raised := self._raise_in_order(profile, limits)) != profile:
            profile = raised
        return profile

    @cached_property
    def _uniforms(self) -> list[tuple[tuple[int, ...], Profile]]:
        """The costs and the profile for every label given to all units, sorted by cost."""
        labels = {label for unit in self.units if not unit.droppable for label in unit.index}
        found = []
        for label in sorted(labels or {"keep", "drop"}):
            profile = tuple(unit.nearest(label) for unit in self.units)
            found.append((tuple(self.costs(profile).values()), profile))
        return sorted(found)

    def _raise_in_order(self, profile: Profile, limits: Limits) -> Profile:
        """Pass once over the units and raise each to its cheapest dearer neighbouring level within the limits."""
        limits = limits or {self.kinds[0]: sys.maxsize}
        kind, *others = limits
        levels, room = list(profile), {name: limits[name] - self.cost(profile, name) for name in limits}
        for i, unit in enumerate(self.units):
            dearer = []
            for level in unit.levels[levels[i]].neighbours:
                change = self._change(levels, i, level, kind)
                fits = 0 < change <= room[kind]
                if fits and all(self._change(levels, i, level, name) <= room[name] for name in others):
                    dearer.append((change, level))
            if dearer:
                _, level = min(dearer)
                for name in limits:
                    room[name] -= self._change(levels, i, level, name)
                levels[i] = level
        return tuple(levels)

    def _change(self, levels: Sequence[int], unit: int, level: int, kind: str) -> int:
        """Return how much the cost of a kind grows (negative: shrinks) when one unit moves to another level."""
        parent, table = self.units[unit].parent, self._costs[kind]
        if parent is not None and self.units[parent].levels[levels[parent]].label == "drop":
            return 0
        change = table[unit][level] - table[unit][levels[unit]]
        drop = self.units[unit].index.get("drop") if self.children[unit] else None
        if drop is not None and (level == drop) != (levels[unit] == drop):
            inside = sum(table[child][levels[child]] for child in self.children[unit])
            change += -inside if level == drop else inside
        return change

    def steps(self, profile: Profile, unit: int, limits: Limits, *, up: bool) -> list[Profile]:
        """Return the profiles within `limits` that move `unit` to a neighbouring level of higher (`up`) or lower cost.

        The cost compared is that of the whole model, in the kind of the first limit.
        """
        kind = next(iter(limits), self.kinds[0])
        here = self.cost(profile, kind)
        found = []
        for level in self.level(profile, unit).neighbours:
            moved = (*profile[:unit], level, *profile[unit + 1 :])
            cost = self.cost(moved, kind)
            if (cost > here if up else cost < here) and self.fits(moved, limits):
                found.append(moved)
        return found

    def cheapest(self, limits: Limits) -> Profile:
        """Return a profile that meets all `limits` at the smallest cost of the first limit's kind.

        Raises:
            ValueError: a limit cannot be met, or no profile that meets all limits at once was found.
        """
        self.check(limits)
        kind = next(iter(limits), self.kinds[0])
        profile = self.extreme(kind)
        if self.fits(profile, limits):
            return profile
        costs = [[float(level.costs[kind]) for level in unit.levels] for unit in self.units]
        found = self.minimise(costs, limits)
        if found is None:
            wanted = ", ".join(f"{limit} {kind}" for kind, limit in limits.items())
            raise ValueError(f"no profile is within all of the limits {wanted}; raise one of them")
        return found

    def minimise(self, values: Sequence[Sequence[float]], limits: Limits) -> Profile | None:
        """Return the canonical profile within `limits` with the smallest sum of its units' values.

        Args:
            values: one value per unit and level; an infinite value excludes the level.
            limits: limits that the profile must meet.

        Returns:
            The profile, or None if no profile within the limits was found.
        """
        from .integer_program import minimise  # scipy is slow to import and rarely needed

        drops = {
            u: (unit.parent, self.units[unit.parent].index["drop"])
            for u, unit in enumerate(self.units)
            if unit.parent is not None and "drop" in self.units[unit.parent].index
        }
        found = minimise(
            values,
            [[[level.costs[kind] for level in unit.levels] for unit in self.units] for kind in limits],
            [limit - self.fixed.get(kind, 0) for kind, limit in limits.items()],
            drops,
            lambda levels: [self.cost(tuple(levels), kind) - limit for kind, limit in limits.items()],
        )
        return None if found is None else self.canonical(tuple(found))

    def labels(self, profile: Profile) -> tuple[str, ...]:
        """Return the label of every unit, including irrelevant units."""
        return tuple(unit.levels[p].label for unit, p in zip(self.units, profile, strict=True))

    def describe(self, profile: Profile) -> dict[str, str]:
        """Return a mapping from unit name to label, without irrelevant units."""
        labels = self.labels(profile)
        return {u.name: labels[i] for i, u in enumerate(self.units) if self.active(profile, i)}

    def parse(self, labels: Mapping[str, str]) -> Profile:
        """Return the profile that gives each named unit its label; the reverse of `describe`.

        Units under a dropped parent may be missing from `labels`.

        Raises:
            ValueError: a unit or level is unknown, or a unit that is not under a dropped parent has no label.
        """
        if unknown := [name for name in labels if name not in {u.name for u in self.units}]:
            raise ValueError(f"unit {unknown[0]!r} is not in this space; see `describe` for the names")
        profile = []
        for unit in self.units:
            parent = self.units[unit.parent].name if unit.parent is not None else None
            label = labels.get(unit.name)
            if label is None and parent is not None and labels.get(parent) == "drop":
                label = unit.levels[0].label
            if label is None:
                raise ValueError(f"unit {unit.name!r} has no level; every unit needs one")
            if label not in unit.index:
                known = ", ".join(unit.index)
                raise ValueError(f"unit {unit.name!r} has no level {label!r}; it has {known}")
            profile.append(unit.index[label])
        return tuple(profile)

    def assignment(self, profile: Profile) -> dict[str, str]:
        """Return a mapping from module path to label for every linear layer that is not left dense.

        Dropped linear layers have the label `drop`. The model depends only on this mapping, so profiles with equal
        assignments build the same model, even if they belong to different spaces.
        """
        found: dict[str, str] = {}
        if profile == DENSE:
            return found
        for i, unit in enumerate(self.units):
            label = unit.levels[profile[i]].label
            if self.active(profile, i) and label not in ("dense", "keep"):
                found |= dict.fromkeys(unit.modules, label)
        return found

    def key(self, profile: Profile) -> str:
        """Return a digest of the model that `profile` builds.

        Profiles of different spaces over the same dense model have equal keys where they build the same model.
        """
        units, texts = self._assigned
        counted = self._counted(profile) if profile else ()
        chosen = map(getitem, texts, [counted[u] for u in units]) if counted else ()
        return hashlib.sha256(b"[" + b",".join(filter(None, chosen)) + b"]").hexdigest()[:32]

    @cached_property
    def _assigned(self) -> tuple[tuple[int, ...], tuple[tuple[bytes | None, ...], ...]]:
        """The unit of each module, and the module's entry in `assignment` at each level of that unit.

        Modules are in the order of their paths. An entry is a JSON text, or None at a level that leaves the module
        dense. A final None follows in each row, so that the index -1 gives the entry of an irrelevant unit.
        """
        found = []
        for u, unit in enumerate(self.units):
            for module in unit.modules:
                texts = [
                    None
                    if level.label in ("dense", "keep")
                    else json.dumps([module, level.label], separators=(",", ":")).encode()
                    for level in unit.levels
                ]
                found.append((module, u, (*texts, None)))
        found.sort(key=lambda row: row[:2])
        return tuple(u for _, u, _ in found), tuple(texts for _, _, texts in found)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the units, their levels, costs and parents, the fixed cost and the number of weights."""
        record = [
            [u.name, u.modules, u.parent, [[v.label, dict(v.costs), v.neighbours] for v in u.levels]]
            for u in self.units
        ]
        text = json.dumps([record, dict(self.fixed), self.weights], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]
