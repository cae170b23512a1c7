"""The space of profiles: what they cost, what is feasible, and which build the same model."""

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
"""The uncompressed model, which a space need not contain; only `assignment` and `key` take it."""
Limits = Mapping[str, int]
"""Cost kind to the largest cost allowed; all of them hold."""


@dataclass(frozen=True)
class Space:
    """Units, and the fixed cost of what is stored beside them.

    A space is a tree of depth two: a branch (or block) is dropped, or the units whose `parent` it is count.
    A profile is one level index per unit; units under a dropped parent keep their level in the profile but
    have no effect on model, cost or key.

    Attributes:
        units: parents stand before their children.
        fixed: cost kind to the cost of what is not searched.
        weights: linear weights that average figures (bits per weight, sparsity) are divided by.
        always: limits that belong to every budget.
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
                raise ValueError(f"unit {unit.name!r} stands before its parent")

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Cost kinds, in the order of the first level's table."""
        return tuple(self.units[0].levels[0].costs)

    @cached_property
    def _costs(self) -> dict[str, list[list[int]]]:
        """Kind to the cost of each level of each unit; what an irrelevant unit costs stands last."""
        return {
            kind: [[*(v.costs[kind] for v in unit.levels), 0] for unit in self.units] for kind in self.kinds
        }

    @cached_property
    def _drops(self) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
        """Unit, level and children of every `drop` that makes units irrelevant."""
        return tuple(
            (i, self.units[i].index["drop"], children)
            for i, children in enumerate(self.children)
            if children and self.units[i].droppable
        )

    def _counted(self, profile: Profile) -> Sequence[int]:
        """The profile with -1 for every irrelevant unit."""
        if len(profile) != len(self.units):
            raise ValueError(f"a profile of {len(profile)} levels is none of {len(self.units)} units")
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
        """For each unit the indices of the units it is the parent of."""
        found: list[list[int]] = [[] for _ in self.units]
        for i, unit in enumerate(self.units):
            if unit.parent is not None:
                found[unit.parent].append(i)
        return tuple(tuple(c) for c in found)

    def level(self, profile: Profile, unit: int) -> Level:
        """The level that `profile` gives to `unit`."""
        return self.units[unit].levels[profile[unit]]

    def active(self, profile: Profile, unit: int) -> bool:
        """Whether the unit's level matters: its parent, if any, is not dropped."""
        parent = self.units[unit].parent
        return parent is None or self.level(profile, parent).label != "drop"

    def cost(self, profile: Profile, kind: str) -> int:
        """Exact cost of the model that `profile` builds, what is fixed included."""
        return self.fixed.get(kind, 0) + sum(map(getitem, self._costs[kind], self._counted(profile)))

    def costs(self, profile: Profile) -> dict[str, int]:
        """`cost` for every kind."""
        return {kind: self.cost(profile, kind) for kind in self.kinds}

    def fits(self, profile: Profile, limits: Limits) -> bool:
        """Whether no limit is exceeded."""
        return all(self.cost(profile, kind) <= limit for kind, limit in limits.items())

    def canonical(self, profile: Profile) -> Profile:
        """The one profile that stands for all that build the same model: irrelevant units at level 0."""
        if profile == DENSE:
            return profile
        counted = self._counted(profile)
        return profile if counted is profile else tuple(max(level, 0) for level in counted)

    def extreme(self, kind: str, largest: bool = False) -> Profile:
        """The profile of smallest (or largest) cost of one kind."""
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
        """Refuse limits that no profile meets, one kind at a time.

        Raises:
            ValueError: an unknown kind, or a limit below the cheapest profile, with the reachable range.
        """
        for kind, limit in limits.items():
            if kind not in self.kinds:
                raise ValueError(f"cost {kind!r} is unknown here; this space has {', '.join(self.kinds)}")
            low, high = self.cost(self.extreme(kind), kind), self.cost(self.extreme(kind, True), kind)
            if limit < low:
                raise ValueError(
                    f"budget {limit} {kind} is below the cheapest profile ({low}; the dearest is {high}); "
                    "raise the budget or add a cheaper level"
                )

    def uniform(self, limits: Limits) -> Profile:
        """The largest uniform level that fits, the remainder raised in block order.

        Branches are kept. A unit without the level takes its dearest one below it, else its cheapest. If no
        uniform level fits, it starts from the cheapest profile instead, so every reachable budget has one.
        Ties between levels go to the one with the higher cost of the later kinds.
        """
        fitting = [profile for _, profile in self._uniforms if self.fits(profile, limits)]
        profile = fitting[-1] if fitting else self.cheapest(limits)
        while (raised := self._raise_in_order(profile, limits)) != profile:
            profile = raised
        return profile

    @cached_property
    def _uniforms(self) -> list[tuple[tuple[int, ...], Profile]]:
        """Every label given to all units, in order of cost."""
        labels = {label for unit in self.units if not unit.droppable for label in unit.index}
        found = []
        for label in sorted(labels or {"keep", "drop"}):
            profile = tuple(unit.nearest(label) for unit in self.units)
            found.append((tuple(self.costs(profile).values()), profile))
        return sorted(found)

    def _raise_in_order(self, profile: Profile, limits: Limits) -> Profile:
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
        """What moving one unit to another level adds to the cost of a kind."""
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
        """Profiles within `limits` with `unit` moved to a neighbouring level of higher (`up`) or lower cost.

        The cost compared is the first limit's kind.
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
        """A profile that meets all `limits`, as cheap as possible in the first kind.

        Raises:
            ValueError: none was found: the limits exclude each other.
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
            raise ValueError(f"no profile is within all of {wanted}; raise one of them")
        return found

    def minimise(self, values: Sequence[Sequence[float]], limits: Limits) -> Profile | None:
        """The canonical profile within `limits` whose values, one per unit and level, have the smallest sum.

        Infinite values exclude a level. None is returned if no profile within the limits was found.
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
        """The label of every unit, whether or not it is active."""
        return tuple(unit.levels[p].label for unit, p in zip(self.units, profile, strict=True))

    def describe(self, profile: Profile) -> dict[str, str]:
        """Unit name to label, units that a drop makes irrelevant left out."""
        labels = self.labels(profile)
        return {u.name: labels[i] for i, u in enumerate(self.units) if self.active(profile, i)}

    def parse(self, labels: Mapping[str, str]) -> Profile:
        """The profile that gives each named unit its label; the reverse of `describe`.

        Units under a dropped parent may be left out.

        Raises:
            ValueError: an unknown unit or level, or a unit without a label.
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
        """Module path to label for every linear layer that is not left dense; `drop` for dropped ones.

        This is what builds the model, so two profiles of any spaces with equal assignments are one model.
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
        """Digest of the model that `profile` builds, the same in every space over the same model."""
        units, texts = self._assigned
        counted = self._counted(profile) if profile else ()
        chosen = map(getitem, texts, [counted[u] for u in units]) if counted else ()
        return hashlib.sha256(b"[" + b",".join(filter(None, chosen)) + b"]").hexdigest()[:32]

    @cached_property
    def _assigned(self) -> tuple[tuple[int, ...], tuple[tuple[bytes | None, ...], ...]]:
        """What `assignment` says of each module as JSON, in order of modules: units, and texts by level.

        The text of an irrelevant unit stands last.
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
        """Digest of units, levels, costs and tree."""
        record = [
            [u.name, u.modules, u.parent, [[v.label, dict(v.costs), v.neighbours] for v in u.levels]]
            for u in self.units
        ]
        text = json.dumps([record, dict(self.fixed), self.weights], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]
