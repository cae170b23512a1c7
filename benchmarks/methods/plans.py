"""The searches that `methods` compares, each sized to the same number of tokens.

Tokens are profiles times tokens, the teacher's and the archive's included. A method whose settings are a fixed
schedule (frontier, evolution, greedy) is stopped by `stop.max_tokens`; one whose settings say how much it measures (dp,
optuna, random) gets the most whole sequences that fit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from paretopress.search.methods.evolution import content
from paretopress.spaces.space import Limits, Space

SAMPLE = 16_384
"""Tokens of one look of random search and Optuna."""


@dataclass(frozen=True)
class Room:
    """What a plan has to fit into.

    Attributes:
        space: what is searched.
        limits: of the budget.
        tokens: that the search may spend.
        archive: tokens of the archive's prefix.
        length: tokens per sequence.
    """

    space: Space
    limits: Limits
    tokens: int
    archive: int
    length: int

    def whole(self, tokens: float) -> int:
        """Tokens rounded down to whole sequences; 0 where not even one fits."""
        return int(tokens) // self.length * self.length

    @property
    def moves(self) -> int:
        """Levels other than the unit's own, over all units."""
        return sum(len(unit.levels) - 1 for unit in self.space.units)

    @property
    def neighbours(self) -> int:
        """At most this many levels are one step from a profile's, over all units."""
        return sum(max(len(level.neighbours) for level in unit.levels) for unit in self.space.units)

    def sensitivities(self, rounds: int, share: float = 1.0) -> int:
        """Tokens of each measurement of `dp`, if its rounds may use this share of the tokens.

        Two baselines, the teacher and each round's proposal are measured on the archive's prefix.
        """
        spent = (3 + rounds) * self.archive
        trials = 1 + self.moves + (rounds - 1) * (1 + self.neighbours)
        return self.whole((share * self.tokens - spent) / (trials + rounds))

    def samples(self, finalists: int = 4) -> int:
        """Looks of `SAMPLE` tokens that fit beside baselines, teacher and finalists on the archive's prefix."""
        return max((self.tokens - (3 + finalists) * self.archive - SAMPLE) // SAMPLE, 0)


Search = list[dict[str, Any]]
Plan = Callable[[Room], Search | None]
"""The `search` part of a configuration; None where not even the smallest version fits."""


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
    """Greedy measures every unit at every step, which for many units is more than any other method asks."""
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
"""Methods that serve all budgets at once."""


def full_runs(space: Space) -> dict[str, Search]:
    """EvoPress's schedule to its end, with its own rule for groups and with the other."""
    other = "none" if content(space) == "bits" else "size"
    found: dict[str, Search] = {"evopress": [{"method": "evolution"}]}
    if content(space) != "drop":
        found[f"evopress, groups {other}"] = [{"method": "evolution", "groups": other}]
    return found


def plans(room: Room) -> dict[str, Search | None]:
    """Name to search, of every method that makes sense for the space."""
    found = {name: plan(room) for name, plan in PLANS.items()}
    if content(room.space) != "bits":
        del found["evolution groups none"]
    return found
