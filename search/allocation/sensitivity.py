"""Sensitivities: how much the fitness changes when one unit at a time leaves a reference profile."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from ...spaces.space import Profile, Space
from ..asking.turns import read_fitness, write_fitness


@dataclass(frozen=True, slots=True)
class Probe:
    """One measurement: `unit` at `level`, the rest as in `base`; profiles are long and made when asked for.

    Attributes:
        unit: that leaves the base.
        level: it goes to.
        base: what it leaves.
        kept: the unit's branch and the level that keeps it, where the base drops it. The probe is then compared
            with the base so changed, which is a probe too.
    """

    unit: int
    level: int
    base: Profile
    kept: tuple[int, int] | None = None

    @property
    def profile(self) -> Profile:
        """What is measured."""
        anchor = self.base if self.kept is None else moved(self.base, *self.kept)
        return moved(anchor, self.unit, self.level)


def probes(space: Space, base: Profile, *, near: bool = False) -> list[Probe]:
    """Every unit moved to each other level, the rest as in `base`; `near`: only to neighbouring levels.

    The units under a dropped branch are probed with that branch kept, which is then what they are compared with;
    they are left out where the branch cannot be kept.
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
    """The level at which a dropped branch is kept, or None where no step leads there."""
    unit = space.units[branch]
    reach = unit.levels[base[branch]].neighbours if near else range(len(unit.levels))
    kept = [n for n in reach if unit.levels[n].label != "drop"]
    return unit.index["keep"] if unit.index.get("keep") in kept else (kept[0] if kept else None)


def moved(profile: Profile, unit: int, level: int) -> Profile:
    """`profile` with one unit at another level."""
    return (*profile[:unit], level, *profile[unit + 1 :])


@dataclass(frozen=True)
class Sensitivity:
    """One-at-a-time measurements around a base profile.

    Attributes:
        base: unit name to label, of all units.
        tokens: calibration tokens of each measurement.
        fitness: of the base.
        deltas: unit name to label to change of fitness; the base's own level has 0, infinity means that the
            measurement failed, and a level that is missing was not measured.
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
        """From the probes of `probes(space, base)` with their fitness."""
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
        """Per unit and level, for `dp.allocate`: infinite where not measured, worse than all where it failed.

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
        """JSON values; infinities become None."""
        deltas = {
            name: {label: write_fitness(d) for label, d in row.items()} for name, row in self.deltas.items()
        }
        return {**asdict(self), "fitness": write_fitness(self.fitness), "deltas": deltas}

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> "Sensitivity":
        """The reverse of `to_json`.

        Raises:
            ValueError: a field is missing or of the wrong kind.
        """
        match record:
            case {"base": dict(base), "tokens": int(tokens), "fitness": fitness, "deltas": dict(deltas)}:
                rows = {n: {label: read_fitness(d) for label, d in r.items()} for n, r in deltas.items()}
                value = fitness if isinstance(fitness, float) else None
                return cls(base, tokens, read_fitness(value), rows)
        raise ValueError("this is no record of sensitivities; measure them again")
