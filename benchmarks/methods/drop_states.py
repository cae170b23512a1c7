"""Exhaustive measurement of all states that drop a given number of branches, kept in a journal.

Searches use the journal as a library: it answers their trials, which count as if they had been measured.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import numpy.typing as npt

from paretopress.evaluators.journal.journal import Journal, key_of_values
from paretopress.evaluators.population.population import PopulationEvaluator
from paretopress.evaluators.trial import Evaluation, Fidelity, Trial
from paretopress.spaces.space import Profile, Space

Floats = npt.NDArray[np.float64]
CHUNK = 1_024
"""Number of states measured together. Neighbouring states share prefixes, and larger chunks hardly share more."""
SAME = 1e-9
"""Largest difference between fitness values that count as equal, in nats."""


@dataclass(frozen=True)
class Measured:
    """Fitness of S states on the archive's prefix.

    Attributes:
        drops_S: number of branches that each state drops.
        equal_S: whether each state drops equally many branches of each type.
        means_S: fitness of each state in nats per token, infinite where it is not finite.
        seconds: time that the measurements took, including those of earlier calls.
        complete: numbers of dropped branches for which all states are measured.
    """

    drops_S: npt.NDArray[np.int64]
    equal_S: npt.NDArray[np.bool_]
    means_S: Floats
    seconds: float
    complete: frozenset[int]

    @cached_property
    def _sorted(self) -> dict[int, Floats]:
        return {}

    def within(self, dropped: int) -> Floats:
        """Return the fitness of all measured states that drop at least `dropped` branches, in ascending order."""
        if dropped not in self._sorted:
            self._sorted[dropped] = np.sort(self.means_S[self.drops_S >= dropped])
        return self._sorted[dropped]

    def rank(self, dropped: int, value: float) -> int:
        """Return the rank, from 1, of the fitness `value` among the states that drop at least `dropped` branches."""
        return int(np.searchsorted(self.within(dropped), value - SAME)) + 1

    def best_equal(self, dropped: int) -> float:
        """Return the lowest fitness of the states that drop `dropped` branches, equally many of each type."""
        own_S = self.equal_S & (self.drops_S == dropped)
        return float(self.means_S[own_S].min()) if own_S.any() else math.inf


def feasible(branches: int, dropped: Iterable[int], most: int) -> list[int]:
    """Return those numbers of dropped branches that have at most `most` states."""
    return [count for count in dropped if comb(branches, count) <= most]


def states(space: Space, dropped: int) -> list[Profile]:
    """Return all profiles that drop exactly `dropped` branches, in a space that has only branches as units."""
    units = space.units
    chosen = map(frozenset, combinations(range(len(units)), dropped))
    return [
        tuple(unit.index["drop" if i in drops else "keep"] for i, unit in enumerate(units))
        for drops in chosen
    ]


def drops_of(space: Space, profile: Profile) -> int:
    """Return the number of branches that a profile drops."""
    return sum(label == "drop" for label in space.labels(profile))


def is_equal(space: Space, profile: Profile) -> bool:
    """Return whether a profile drops equally many branches of each type."""
    labels = zip(space.units, space.labels(profile), strict=True)
    drops = Counter({unit.branch: 0 for unit in space.units})
    drops.update(unit.branch for unit, label in labels if label == "drop")
    return len(set(drops.values())) == 1


def measure_states(
    evaluator: PopulationEvaluator, fidelity: Fidelity, dropped: Sequence[int], path: Path
) -> Measured:
    """Measure the states with given numbers of dropped branches that a journal does not hold yet; return all of them.

    States are measured in sorted order, so that neighbours share prefixes. Memory: the values per sequence of `CHUNK`
    states, and one mean per state. Time: mostly that of the head, which no two states share.

    Args:
        evaluator: evaluator of a space that has only branches as units.
        fidelity: sequences to measure on.
        dropped: numbers of dropped branches.
        path: file of the journal.
    """
    space = evaluator.space
    data = evaluator.data[fidelity.data].fingerprint
    wanted = sorted(profile for count in dropped for profile in states(space, count))
    keys = [key_of_values(space, profile, data) for profile in wanted]
    journal = Journal(path, evaluator.fingerprint)
    known: dict[str, tuple[float, float]] = {}
    for record in journal.history():
        if record.fidelity == fidelity:
            known[record.key] = (_mean(record.values), record.seconds)
    missing = [i for i, key in enumerate(keys) if key not in known]
    for first in range(0, len(missing), CHUNK):
        part = missing[first : first + CHUNK]
        began = time.perf_counter()
        values, losses = evaluator.measure([space.assignment(wanted[i]) for i in part], fidelity)
        seconds = (time.perf_counter() - began) / len(part)
        for i, own, loss in zip(part, values, losses, strict=True):
            trial = Trial(0, wanted[i], fidelity)
            journal.append(keys[i], Evaluation(trial, tuple(own), tuple(loss), seconds))
            known[keys[i]] = (_mean(own), seconds)
    journal.close()
    found = [known[key] for key in keys]
    return Measured(
        drops_S=np.array([drops_of(space, profile) for profile in wanted], np.int64),
        equal_S=np.array([is_equal(space, profile) for profile in wanted], np.bool_),
        means_S=np.array([mean for mean, _ in found], np.float64),
        seconds=math.fsum(seconds for _, seconds in found),
        complete=frozenset(dropped),
    )


def _mean(values: Sequence[float]) -> float:
    """Return the mean of values as `Evaluation.fitness` does, infinite if there are none, as after an error."""
    mean = math.fsum(values) / len(values) if values else math.inf
    return mean if math.isfinite(mean) else math.inf
