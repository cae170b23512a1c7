"""The Pareto archive, which keeps all models measured at one fidelity and finds those that are not dominated."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from ...evaluators.trial import Evaluation, Fidelity
from ...spaces.space import Limits, Profile, Space


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the archive.

    Attributes:
        profile: canonical profile of the model.
        cost: cost of the model, of the kind that the archive ranks by.
        fitness: fitness at the archive's fidelity.
        evaluation: evaluation that gave the fitness.
        costs: cost of every kind, by name of the kind.
    """

    profile: Profile
    cost: int
    fitness: float
    evaluation: Evaluation
    costs: Mapping[str, int]

    def fits(self, limits: Limits) -> bool:
        """Tell whether the costs are within all limits."""
        return all(self.costs[kind] <= limit for kind, limit in limits.items())


class ParetoArchive:
    """Evaluations at one fidelity, ranked by one kind of cost and by fitness, both minimised.

    Evaluations at other fidelities are left out, so that no model enters the front by a lucky value on little text.
    Evaluations with an error are left out as well. Iteration goes over the front in order of cost. The front does not
    depend on the order in which evaluations are added.

    Args:
        space: space of the profiles.
        kind: kind of cost that is the front's axis.
        fidelity: calibration sequences on which all models are compared.

    Raises:
        ValueError: the space has no such kind of cost.
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
        """Add evaluations at the archive's fidelity that have a finite fitness, one per model.

        Returns:
            The number of models that the archive did not hold before.
        """
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
        """Return the last `count` entries that were added, the newest first."""
        return list(islice(reversed(self._entries.values()), count))

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries, in order of addition."""
        return tuple(self._entries.values())

    def __len__(self) -> int:
        """Return the number of entries on the front."""
        return len(self.front)

    def __iter__(self) -> Iterator[Entry]:
        """Iterate over the front in order of cost."""
        return iter(self.front)

    @property
    def front(self) -> tuple[Entry, ...]:
        """The entries that are not dominated, in order of cost.

        Of entries with equal cost and fitness, the one whose profile sorts first is kept.
        """
        if self._front is None:
            self._front = []
            for entry in sorted(self._entries.values(), key=lambda e: (e.cost, e.fitness, e.profile)):
                if not self._front or entry.fitness < self._front[-1].fitness:
                    self._front.append(entry)
        return tuple(self._front)

    def ranked(self, limits: Limits) -> list[Entry]:
        """Return the entries within all limits, sorted by fitness, then by cost, then by profile."""
        fitting = [entry for entry in self._entries.values() if entry.fits(limits)]
        return sorted(fitting, key=lambda e: (e.fitness, e.cost, e.profile))

    def best(self, limits: int | Limits) -> Entry | None:
        """Return the entry of lowest fitness within the limits, or None if no entry is within them.

        A single number is a limit on the archive's kind of cost.
        """
        ranked = self.ranked({self.kind: limits} if isinstance(limits, int) else limits)
        return ranked[0] if ranked else None

    def hypervolume(self, reference: tuple[float, float]) -> float:
        """Return the area between the front and the point `reference` (cost, fitness).

        References:
            Zitzler and Thiele (1998), "Multiobjective optimization using evolutionary algorithms".
        """
        area, ceiling = 0.0, reference[1]
        for entry in self.front:
            if entry.cost < reference[0] and entry.fitness < ceiling:
                area += (reference[0] - entry.cost) * (ceiling - entry.fitness)
                ceiling = entry.fitness
        return area
