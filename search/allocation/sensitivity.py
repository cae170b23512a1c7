"""Sensitivities: how much the fitness changes when one unit at a time leaves a base profile."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from ...spaces.space import Profile, Space
from ..asking.turns import read_fitness, write_fitness


@dataclass(frozen=True, slots=True)
class Probe:
    """A base profile with one unit moved to another level, whose fitness is to be measured.

    The profile is long, so it is built only when it is needed.

    Attributes:
        unit: index of the unit that leaves the base.
        level: index of the level that the unit moves to.
        base: profile that the unit leaves.
        kept: None, or for a unit of a branch that the base drops, the index of the branch and of a level that keeps it.
            The probe is then compared with the base with this branch kept, which is another probe.
    """

    unit: int
    level: int
    base: Profile
    kept: tuple[int, int] | None = None

    @property
    def profile(self) -> Profile:
        """The base with the unit at the probed level, and with the unit's branch kept if `kept` is set."""
        anchor = self.base if self.kept is None else moved(self.base, *self.kept)
        return moved(anchor, self.unit, self.level)


def probes(space: Space, base: Profile, *, near: bool = False) -> list[Probe]:
    """Return the probes of every unit at each of its other levels, or at neighbouring levels only if `near`.

    The units of a dropped branch are probed with the branch kept, and compared with the base with the branch kept.
    They are left out if the branch cannot be kept.
    """
    found = []
    for u, unit in enumerate(space.units):
        kept = None
        if not space.active(base, u) and unit.parent is not None:
            level = kept_level(space, base, unit.parent, near=near)
            if level is None:
                continue
            kept = (unit.parent, level)
        reach = unit.levels[base[u]].neighbours if near else range(len(unit.levels))
        found += [Probe(u, n, base, kept) for n in reach if n != base[u]]
    return found


def kept_level(space: Space, base: Profile, branch: int, *, near: bool) -> int | None:
    """Return a level at which a dropped branch is kept, `keep` if possible, or None if there is none.

    With `near`, only the neighbours of the branch's level in `base` are considered.
    """
    unit = space.units[branch]
    reach = unit.levels[base[branch]].neighbours if near else range(len(unit.levels))
    kept = [n for n in reach if unit.levels[n].label != "drop"]
    return unit.index["keep"] if unit.index.get("keep") in kept else (kept[0] if kept else None)


def moved(profile: Profile, unit: int, level: int) -> Profile:
    """Return `profile` with one unit at another level."""
    return (*profile[:unit], level, *profile[unit + 1 :])


@dataclass(frozen=True)
class Sensitivity:
    """Measured changes of single units around a base profile.

    Attributes:
        base: maps the name of every unit to the label of its level in the base.
        tokens: number of calibration tokens of each measurement.
        fitness: fitness of the base profile.
        deltas: maps unit name and label to the change of fitness. The base's own level has the change 0. An infinite
            change is a failed measurement. A level that was not measured is missing.
    """

    base: Mapping[str, str]
    tokens: int
    fitness: float
    deltas: Mapping[str, Mapping[str, float]]

    @classmethod
    def of(
        cls,
        space: Space,
        base: Profile,
        tokens: int,
        base_fitness: float,
        measured: Sequence[tuple[Probe, float]],
    ) -> "Sensitivity":
        """Build the sensitivities from measured probes.

        Args:
            space: space of the profiles.
            base: profile that the probes leave.
            tokens: number of calibration tokens of each measurement.
            base_fitness: fitness of the base.
            measured: probes that `probes` returned for the base, each with its fitness.
        """
        labels = space.labels(base)
        deltas = {unit.name: {labels[u]: 0.0} for u, unit in enumerate(space.units)}
        known = {(probe.unit, probe.level): fitness for probe, fitness in measured}
        for probe, fitness in measured:
            reference = base_fitness if probe.kept is None else known[probe.kept]
            unit = space.units[probe.unit]
            change = fitness - (reference if reference < math.inf else 0.0)
            deltas[unit.name][unit.levels[probe.level].label] = change
        return cls(dict(zip(deltas, labels, strict=True)), tokens, base_fitness, deltas)

    def errors(self, space: Space) -> list[list[float]]:
        """Return the error of every level of every unit, for `allocate`.

        A level that was not measured has an infinite error. A level whose measurement failed has a larger error than
        all others.

        Raises:
            ValueError: a unit of the space was not measured.
        """
        finite = [d for deltas in self.deltas.values() for d in deltas.values() if d < math.inf]
        worst = 1.0 + 10.0 * math.fsum(map(abs, finite))
        if missing := [unit.name for unit in space.units if unit.name not in self.deltas]:
            raise ValueError(f"unit {missing[0]!r} has no sensitivity; measure this space again")
        return [
            [
                min(self.deltas[unit.name][v.label], worst) if v.label in self.deltas[unit.name] else math.inf
                for v in unit.levels
            ]
            for unit in space.units
        ]

    def to_json(self) -> dict[str, object]:
        """Return the sensitivities as JSON values, with None for infinity."""
        deltas = {
            name: {label: write_fitness(d) for label, d in row.items()} for name, row in self.deltas.items()
        }
        return {**asdict(self), "fitness": write_fitness(self.fitness), "deltas": deltas}

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> "Sensitivity":
        """Build the sensitivities from what `to_json` returned.

        Raises:
            ValueError: a field is missing or has the wrong type.
        """
        match record:
            case {"base": dict(base), "tokens": int(tokens), "fitness": fitness, "deltas": dict(deltas)}:
                rows = {n: {label: read_fitness(d) for label, d in r.items()} for n, r in deltas.items()}
                value = fitness if isinstance(fitness, float) else None
                return cls(base, tokens, read_fitness(value), rows)
        raise ValueError("the record of sensitivities is incomplete; measure them again")
