"""The Pareto archive: everything measured at one fidelity, and what of it is not dominated."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from ...evaluators.trial import Evaluation, Fidelity
from ...spaces.space import Limits, Profile, Space


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the archive; `profile` is canonical, `cost` is of the archive's kind, `costs` of every kind."""

    profile: Profile
    cost: int
    fitness: float
    evaluation: Evaluation
    costs: Mapping[str, int]

    def fits(self, limits: Limits) -> bool:
        """Whether no limit is exceeded."""
        return all(self.costs[kind] <= limit for kind, limit in limits.items())


class ParetoArchive:
    """Evaluations at one fidelity, ranked by one kind of cost and fitness, both minimised.

    Values at other fidelities and errors are left out, so that nothing here owes its place to a short, lucky
    look. Iteration is the front in order of cost. What it holds does not depend on the order of `add`.

    Args:
        space: that gives costs and canonical profiles.
        kind: kind of cost that is the front's axis.
        fidelity: the fixed calibration prefix.
    """

    def __init__(self, space: Space, kind: str, fidelity: Fidelity) -> None:
        if kind not in space.kinds:
            raise ValueError(f"cost {kind!r} is unknown here; this space has {', '.join(space.kinds)}")
        self.space = space
        self.kind = kind
        self.fidelity = fidelity
        self._entries: dict[Profile, Entry] = {}
        self._front: list[Entry] | None = None

    def add(self, evaluations: Iterable[Evaluation]) -> int:
        """Keep those at this fidelity without error, one per model; how many were new."""
        before = len(self._entries)
        for evaluation in evaluations:
            if evaluation.trial.fidelity != self.fidelity or evaluation.error is not None:
                continue
            profile = self.space.canonical(evaluation.trial.profile)
            if profile not in self._entries and evaluation.fitness < float("inf"):
                costs = self.space.costs(profile)
                self._entries[profile] = Entry(
                    profile, costs[self.kind], evaluation.fitness, evaluation, costs
                )
                self._front = None
        return len(self._entries) - before

    def newest(self, count: int) -> list[Entry]:
        """The entries added last."""
        return list(islice(reversed(self._entries.values()), count))

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Everything, in order of addition."""
        return tuple(self._entries.values())

    def __len__(self) -> int:
        """Entries on the front."""
        return len(self.front)

    def __iter__(self) -> Iterator[Entry]:
        """The front in order of cost."""
        return iter(self.front)

    @property
    def front(self) -> tuple[Entry, ...]:
        """Entries that no other equals or beats in both cost and fitness; of equals the first profile."""
        if self._front is None:
            self._front = []
            for entry in sorted(self._entries.values(), key=lambda e: (e.cost, e.fitness, e.profile)):
                if not self._front or entry.fitness < self._front[-1].fitness:
                    self._front.append(entry)
        return tuple(self._front)

    def ranked(self, limits: Limits) -> list[Entry]:
        """Entries within all limits, best fitness first, then cheapest, then in order of profile."""
        fitting = [entry for entry in self._entries.values() if entry.fits(limits)]
        return sorted(fitting, key=lambda e: (e.fitness, e.cost, e.profile))

    def best(self, limits: int | Limits) -> Entry | None:
        """The entry of lowest fitness within the limits (a number limits the archive's kind), if any."""
        ranked = self.ranked({self.kind: limits} if isinstance(limits, int) else limits)
        return ranked[0] if ranked else None

    def hypervolume(self, reference: tuple[float, float]) -> float:
        """Area that the front dominates within `reference` (cost, fitness).

        References:
            Zitzler and Thiele (1998), "Multiobjective optimization using evolutionary algorithms".
        """
        area, ceiling = 0.0, reference[1]
        for entry in self.front:
            if entry.cost < reference[0] and entry.fitness < ceiling:
                area += (reference[0] - entry.cost) * (ceiling - entry.fitness)
                ceiling = entry.fitness
        return area
