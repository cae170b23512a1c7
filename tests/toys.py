"""Small spaces and an evaluator whose values follow from a formula; neither needs a model."""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from paretopress.evaluators.slopes.slope_trial import SlopeEvaluation, Slopes, SlopeSums, SlopeTrial
from paretopress.evaluators.trial import Evaluation, Fidelity, Trial
from paretopress.search.asking.calibration_sequences import CalibrationSequences
from paretopress.spaces.configuration import MinimumConfig
from paretopress.spaces.minimums import with_minimums
from paretopress.spaces.space import DENSE, Limits, Profile, Space
from paretopress.spaces.unit import Level, Unit

LENGTH = 64
CALIBRATION = CalibrationSequences(sequences=32, length=LENGTH, archive=Fidelity(0, 0, 8, LENGTH))
"""32 sequences of 64 tokens, the first 8 of them the archive's."""


def chain(levels: Iterable[tuple[str, Mapping[str, int]]]) -> tuple[Level, ...]:
    """Levels in order of their first cost, each a neighbour of the next."""
    ordered = sorted(levels, key=lambda item: tuple(item[1].values()))
    last = len(ordered) - 1
    return tuple(
        Level(label, costs, tuple(n for n in (i - 1, i + 1) if 0 <= n <= last))
        for i, (label, costs) in enumerate(ordered)
    )


def switches(first: Profile, second: Profile) -> int:
    """Units in which two profiles differ."""
    return sum(a != b for a, b in zip(first, second, strict=True))


def linear(block: int, name: str, levels: tuple[Level, ...], parent: int | None = None) -> Unit:
    """A linear unit `blocks.<block>.<name>`."""
    path = f"blocks.{block}.{name}"
    return Unit(path, (path,), block, "mlp" if name == "up" else "attention", levels, parent)


def bits_space(blocks: int = 2) -> Space:
    """Layers of three sizes (16, 4 and 48 thousand weights) at 2, 3, 4 or 6 bits."""
    sizes = {"q": 16, "k": 4, "up": 48}
    units = [
        linear(b, name, chain((f"w{n}", {"bits": n * size * 1000}) for n in (2, 3, 4, 6)))
        for b in range(blocks)
        for name, size in sizes.items()
    ]
    return Space(tuple(units), {"bits": 1000}, weights=blocks * 68_000)


def bits_limits(space: Space, bits: int = 3) -> Limits:
    """What `bits` bits for every weight cost."""
    return {"bits": space.fixed["bits"] + bits * space.weights}


def ladder_space(blocks: int = 2) -> Space:
    """Sparsity levels whose steps are equal counts of zeros in layers of any size."""
    sizes = {"q": (16, 4), "k": (8, 2), "up": (48, 6)}
    units = []
    for b in range(blocks):
        for name, (size, steps) in sizes.items():
            offsets = range(-steps // 2, steps // 2 + 1)
            levels = chain((f"s50{o * 1000:+d}", {"kept": size * 500 - o * 1000}) for o in offsets)
            units.append(linear(b, name, levels))
    return Space(tuple(units), weights=blocks * 72_000)


def ladder_limits(space: Space) -> Limits:
    """Half of all weights kept."""
    return {"kept": space.weights // 2}


def branch(block: int, kind: str, cost: dict[str, int]) -> Unit:
    """A branch that is kept at a cost or dropped for nothing."""
    levels = (Level("drop", dict.fromkeys(cost, 0), (1,)), Level("keep", cost, (0,)))
    return Unit(f"blocks.{block}.{kind}", (f"blocks.{block}.{kind}.all",), block, kind, levels)


def drop_space(blocks: int = 4) -> Space:
    """Attention and MLP branches, MLPs twice as large."""
    units = [
        branch(b, kind, {"parameters": size})
        for b in range(blocks)
        for kind, size in (("attention", 100), ("mlp", 200))
    ]
    return Space(tuple(units), {"parameters": 50}, weights=blocks * 300)


def drop_limits(space: Space) -> Limits:
    """Three quarters of the parameters."""
    return {"parameters": 50 + space.weights * 3 // 4}


def joint_space(blocks: int = 2) -> Space:
    """Branches over quantised layers; multiply-accumulates as a second cost that only drops save."""
    units: list[Unit] = []
    for b in range(blocks):
        for kind, layers in (("attention", {"q": 16, "k": 4}), ("mlp", {"up": 48})):
            parent = len(units)
            units.append(branch(b, kind, {"bits": 0, "macs": 0}))
            for name, size in layers.items():
                levels = chain((f"w{n}", {"bits": n * size, "macs": size}) for n in (2, 3, 4))
                units.append(linear(b, name, levels, parent))
    return Space(tuple(units), {"bits": 10, "macs": 5}, weights=blocks * 68)


def joint_limits(space: Space) -> Limits:
    """Three bits for every weight, and all multiply-accumulates but those of one attention."""
    return {"bits": 10 + 3 * space.weights, "macs": 5 + space.weights - 20}


def minimum_space(blocks: int = 4) -> Space:
    """Branches of which all attentions but one must stay."""
    kept = MinimumConfig(count=blocks - 1, label="keep", units="attention")
    return with_minimums(drop_space(blocks), [kept])


def minimum_limits(space: Space) -> Limits:
    """Half of the parameters, which dropping attentions would be the shortest way to."""
    return {"parameters": 50 + space.weights // 2, **space.always}


def one_level_space() -> Space:
    """One unit with one level."""
    return Space((linear(0, "q", chain([("w4", {"bits": 4})])),), weights=1)


SPACES: dict[str, tuple[Callable[[], Space], Callable[[Space], Limits]]] = {
    "bits": (bits_space, bits_limits),
    "ladder": (ladder_space, ladder_limits),
    "drop": (drop_space, drop_limits),
    "joint": (joint_space, joint_limits),
    "minimum": (minimum_space, minimum_limits),
    "one level": (one_level_space, lambda space: {"bits": 4}),
}


def everything(space: Space) -> Iterator[Profile]:
    """Every canonical profile."""
    ranges = [range(len(unit.levels)) for unit in space.units]
    return (p for p in itertools.product(*ranges) if p == space.canonical(p))


def as_sums(slopes: Slopes) -> SlopeSums:
    """Sums over one token whose means these are."""
    pairs = [
        (change, slopes.second[unit][label])
        for unit, row in slopes.first.items()
        for label, change in row.items()
    ]
    labels = {unit: tuple(row) for unit, row in slopes.first.items()}
    return SlopeSums(labels, np.array(pairs).reshape(-1, 1, 2), 1)


class ToyEvaluator:
    """Fitness by a formula of the model: a penalty per level, plus pairs that hurt together, plus noise.

    The noise of a sequence depends on profile and sequence only. A dropped branch costs its own penalty in place of
    those of its units.

    Args:
        space: of the profiles.
        seed: of the penalties.
        interaction: size of the products of neighbouring units' penalties.
        noise: standard deviation per sequence.
        broken: profiles that come back as errors.
        constant: every value is 1.
    """

    def __init__(
        self,
        space: Space,
        seed: int = 0,
        *,
        interaction: float = 0.0,
        noise: float = 0.0,
        broken: Callable[[Profile], bool] = lambda profile: False,
        constant: bool = False,
    ) -> None:
        self.space = space
        self.interaction = interaction
        self.noise = noise
        self.broken = broken
        self.constant = constant
        self.seen: list[Trial] = []
        rng = np.random.default_rng(seed)
        self.penalties = [self._penalties(unit, rng) for unit in space.units]

    @property
    def fingerprint(self) -> str:
        """Of the space: the formula follows from it."""
        return self.space.fingerprint

    def _penalties(self, unit: Unit, rng: np.random.Generator) -> list[float]:
        weight = float(rng.lognormal(0.0, 1.0))
        if unit.droppable:
            return [0.0 if level.label == "keep" else 2.0 * weight for level in unit.levels]
        best = len(unit.levels) - 1
        return [weight * (0.35**place - 0.35**best) for place in range(len(unit.levels))]

    def true(self, profile: Profile) -> float:
        """The fitness without noise."""
        if self.constant:
            return 1.0
        terms = [
            self.penalties[u][level] if self.space.active(profile, u) else 0.0
            for u, level in enumerate(profile)
        ]
        pairs = math.fsum(a * b for a, b in itertools.pairwise(terms))
        return 0.1 + math.fsum(terms) + self.interaction * pairs

    def value(self, profile: Profile, sequence: int) -> float:
        """The fitness of one sequence."""
        if not self.noise:
            return self.true(profile)
        digest = hashlib.sha256(repr((self.space.canonical(profile), sequence)).encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        return self.true(profile) + self.noise * float(rng.standard_normal())

    def evaluate(self, trials: Iterable[Trial]) -> Iterator[Evaluation]:
        """One evaluation per trial, in order."""
        for trial in trials:
            self.seen.append(trial)
            if self.broken(trial.profile):
                yield Evaluation(trial, (), (), error="broken")
                continue
            if isinstance(trial, SlopeTrial):
                yield SlopeEvaluation(trial, (), (), slopes=as_sums(self.slopes(trial)))
                continue
            rows = trial.fidelity.rows(CALIBRATION.sequences)
            values = tuple(self.value(trial.profile, int(row)) for row in rows)
            yield Evaluation(trial, values, tuple(1.0 + v for v in values))

    def slopes(self, trial: Trial) -> Slopes:
        """Changes of the fitness with every level of every unit whose layers run, all of them of first order.

        Around the dense model they are errors of each level, of second order, and only the drop of a branch is one.
        """
        dense = trial.profile == DENSE
        base = (
            tuple(
                unit.nearest("keep") if unit.droppable else len(unit.levels) - 1 for unit in self.space.units
            )
            if dense
            else trial.profile
        )
        changes: dict[str, dict[str, float]] = {}
        for u, unit in enumerate(self.space.units):
            levels = range(len(unit.levels)) if self.space.active(base, u) else ()
            changes[unit.name] = {
                unit.levels[n].label: self._change(base, u, n, trial.fidelity)
                for n in levels
                if not (unit.droppable and n == base[u])
            }
        none = {unit: dict.fromkeys(row, 0.0) for unit, row in changes.items()}
        return Slopes(none, changes) if dense else Slopes(changes, none)

    def _change(self, base: Profile, unit: int, level: int, fidelity: Fidelity) -> float:
        moved = (*base[:unit], level, *base[unit + 1 :])
        rows = fidelity.rows(CALIBRATION.sequences)
        gains = [self.value(moved, int(row)) - self.value(base, int(row)) for row in rows]
        return math.fsum(gains) / len(gains)

    def optimum(self, limits: Limits) -> tuple[Profile, float]:
        """The best profile within the limits, by looking at all."""
        fitting = (p for p in everything(self.space) if self.space.fits(p, limits))
        best = min(fitting, key=self.true)
        return best, self.true(best)
