"""The searches that `methods` compares, each with settings for the same number of tokens.

The tokens of a search are the sum over profiles of the tokens that each is measured on. Those of the teacher and those
of the archive's prefix are included. `stop.max_tokens` stops frontier and
evolution, whose settings are a fixed schedule. The settings of dp, optuna, random and greedy say how much they measure,
so these methods get the most whole sequences or samples that fit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from paretopress.search.methods.evolution import content
from paretopress.spaces.space import Limits, Space

SAMPLE = 16_384
"""Number of tokens of each sample of random search and Optuna."""


@dataclass(frozen=True)
class Room:
    """The limits that a search has to fit into.

    Attributes:
        space: space that is searched.
        limits: cost limits of the budget.
        tokens: number of tokens that the search may spend.
        archive: number of tokens of the archive's prefix.
        length: number of tokens per sequence.
    """

    space: Space
    limits: Limits
    tokens: int
    archive: int
    length: int

    def whole(self, tokens: float) -> int:
        """Return tokens rounded down to whole sequences, which is 0 where not even one sequence fits."""
        return int(tokens) // self.length * self.length

    @property
    def moves(self) -> int:
        """Number of profiles that differ from a given profile in the level of a single unit."""
        return sum(len(unit.levels) - 1 for unit in self.space.units)

    @property
    def neighbours(self) -> int:
        """Largest number of profiles that differ from a profile in one unit, which has a neighbouring level."""
        return sum(max(len(level.neighbours) for level in unit.levels) for unit in self.space.units)

    def sensitivities(self, rounds: int, share: float = 1.0) -> int:
        """Return the number of tokens for each measurement of `dp` that lets all its rounds use a share of the tokens.

        The share also pays for two baselines, the teacher and each round's proposal on the archive's prefix.

        Args:
            rounds: number of rounds of `dp`.
            share: share of `tokens` that may be used, from 0 to 1.
        """
        spent = (3 + rounds) * self.archive
        trials = 1 + self.moves + (rounds - 1) * (1 + self.neighbours)
        return self.whole((share * self.tokens - spent) / (trials + rounds))

    def samples(self, finalists: int = 4) -> int:
        """Return how many samples of `SAMPLE` tokens fit, if baselines, teacher and finalists use the whole prefix."""
        return max((self.tokens - (3 + finalists) * self.archive - SAMPLE) // SAMPLE, 0)


Search = list[dict[str, Any]]
Plan = Callable[[Room], Search | None]
"""A function that returns the `search` part of a configuration, or None where not even the smallest search fits."""


def _dp(rounds: int) -> Plan:
    def plan(room: Room) -> Search | None:
        tokens = room.sensitivities(rounds)
        return [{"method": "dp", "tokens": tokens, "rounds": rounds}] if tokens else None

    return plan


def _dp_then_evolution(room: Room) -> Search | None:
    tokens = room.sensitivities(1, 0.5)
    evolution = {"method": "evolution", "groups": "none"}
    return [{"method": "dp", "tokens": tokens}, evolution] if tokens else None


def _optuna(sampler: str) -> Plan:
    def plan(room: Room) -> Search | None:
        trials = room.samples()
        return (
            [{"method": "optuna", "sampler": sampler, "trials": trials, "tokens": SAMPLE}] if trials else None
        )

    return plan


def _random(room: Room) -> Search | None:
    samples = room.samples()
    return [{"method": "random", "samples": samples, "tokens": SAMPLE}] if samples else None


def _greedy(room: Room) -> Search | None:
    """Return the settings of a greedy search within the tokens of `room`, or None if even one sequence is too much.

    A greedy search measures every unit at every step, so it needs many tokens.
    """
    space = room.space
    ((kind, limit), *_) = room.limits.items()
    dearest = space.cost(space.extreme(kind, largest=True), kind)
    cheapest = space.cost(space.extreme(kind), kind)
    levels = sum(len(unit.levels) - 1 for unit in space.units)
    steps = levels * (dearest - limit) / max(dearest - cheapest, 1)
    tokens = room.whole((room.tokens - 4 * room.archive) / (1 + len(space.units) * (steps + 1)))
    return [{"method": "greedy", "tokens": tokens}] if tokens else None


def _frontier(settings: Mapping[str, Any]) -> Plan:
    return lambda room: [{"method": "frontier", **settings}]


def _evolution(settings: Mapping[str, Any]) -> Plan:
    return lambda room: [{"method": "evolution", **settings}]


PLANS: dict[str, Plan] = {
    "dp-nmse": lambda room: [{"method": "dp", "errors": "nmse"}],
    "frontier": _frontier({}),
    "frontier, survey only": _frontier({"rounds": 0}),
    "frontier, measured": _frontier({"sensitivities": "measured"}),
    "frontier, evolution": lambda room: [{"method": "frontier"}, {"method": "evolution", "groups": "none"}],
    "dp-kl": _dp(1),
    "dp-kl 3 rounds": _dp(3),
    "dp-kl 6 rounds": _dp(6),
    "evolution": _evolution({}),
    "evolution groups none": _evolution({"groups": "none"}),
    "dp-kl, evolution": _dp_then_evolution,
    "optuna tpe": _optuna("tpe"),
    "optuna cmaes": _optuna("cmaes"),
    "random": _random,
    "greedy": _greedy,
}
LONG = "evolution, long"
TOGETHER = ("frontier", "dp")
"""Methods whose single run serves all budgets."""


def full_runs(space: Space) -> dict[str, Search]:
    """Return EvoPress's evolution with its full schedule, with its own rule for groups and with the other rule."""
    other = "none" if content(space) == "bits" else "size"
    found: dict[str, Search] = {"evopress": [{"method": "evolution"}]}
    if content(space) != "drop":
        found[f"evopress, groups {other}"] = [{"method": "evolution", "groups": other}]
    return found


def plans(room: Room) -> dict[str, Search | None]:
    """Return the search of every method that makes sense for the space, by name; None if it needs too many tokens."""
    found = {name: plan(room) for name, plan in PLANS.items()}
    if content(room.space) != "bits":
        del found["evolution groups none"]
    return found
