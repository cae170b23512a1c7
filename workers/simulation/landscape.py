"""An evaluator that computes values for any space from a closed formula, without a model.

Array names carry their axes: N profiles, U units, F levels of all units one after the other, B blocks, D directions,
S sequences. The terms of all sums are rounded to multiples of a power of two so coarse that the 53 bits of a float64
hold every sum exactly. So a value depends neither on what is computed with it nor on the order of additions.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from zlib import crc32

import numpy as np
import numpy.typing as npt

from ...evaluators.slopes.slope_trial import SlopeEvaluation, SlopeSums, SlopeTrial
from ...evaluators.trial import Evaluation, Fidelity, Trial
from ...spaces.space import DENSE, Profile, Space
from ...spaces.storage.files import digest
from ...spaces.unit import Unit
from .landscape_moves import Floats, Ints, Moves

_STEEPNESS = 5.0
_DIRECTIONS = 4
_EFFECT_STEP, _AMPLITUDE_STEP, _WEIGHT_STEP = 2.0**-32, 2.0**-22, 2.0**-10
_LARGEST_WEIGHT = 2.0**8
_DENSE_CROSS_ENTROPY = 2.0
_AT_ONCE = 1 << 20
"""Largest number of profiles times units that are computed at once."""


class Landscape:
    """Evaluates profiles by a formula that behaves like measured divergences.

    Every unit has an effect, which rises steeply as the cost of its level falls: from 0 at the most expensive level to
    a log-normal draw at the cheapest. All draws add up to 1 nat. A dropped branch has an effect of its own plus the
    effects of all its units at their cheapest levels. An effect is the squared length of an error vector. The vector of
    unit u has length x_u = sqrt(effect) and a random direction s_u. Vectors in the same block and in neighbouring
    blocks partly add up or cancel:

        q = sum_u x_u^2 + interaction * (2 sum_{u<v in one block} + sum_{neighbouring blocks}) x_u x_v s_u.s_v
        expected = (1 - exp(-saturation * q)) / saturation
        value of a sequence = expected * (sum_u weight_su x_u^2 / sum_u x_u^2) * (1 + noise * draw)

    Here q is at least (1 - interaction) times the sum of effects. Weights are log-normal with mean 1 and the same for
    all profiles, so the values of similar profiles rise and fall together over the sequences, and a search can overfit
    to few sequences. `draw` depends on profile and sequence and has mean 0 and standard deviation 1.

    Slopes around a profile are exact: the change of the formula without its last factor when one unit moves. On every
    sequence the change has a factor (1 + noise * draw) of its own, so slopes over more sequences are more accurate.
    The whole change is in the first order, and the second order is 0. Around the dense model, where no unit has an
    effect, it is the other way round, as with a divergence. Units of a branch must be in the block of the branch.

    Time: about 0.1 microseconds per profile and unit, 16 sequences included; slopes about a microsecond per
    level. Memory: 8 bytes per unit and sequence used, 16 bytes per level and sequence of slopes.

    Args:
        space: space of the profiles.
        sequences: number of sequences in each data set; matters only for fidelities with a seed other than 0.
        seed: seed of all random draws.
        interaction: strength of the interaction, from 0 (effects add up) to 0.9; beyond, values might be negative.
        saturation: curvature of the value over q; above 0 large errors add ever less, below 0 ever more.
        spread: standard deviation of the logarithm of weights, for the part that all units of a sequence share and
            again for the part of each unit.
        noise: strength of the random last factor, from 0 to 0.5.
    """

    def __init__(
        self,
        space: Space,
        sequences: int,
        seed: int = 0,
        *,
        interaction: float = 0.0,
        saturation: float = 0.0,
        spread: float = 0.0,
        noise: float = 0.0,
    ) -> None:
        check_share("interaction", interaction, 0.9)
        check_share("noise", noise, 0.5)
        self.space = space
        self.sequences = sequences
        self.seed = seed
        self.interaction = interaction
        self.saturation = saturation
        self.spread = spread
        self.noise = noise
        rng = np.random.default_rng(seed)
        self._effects = _effects(space, rng)
        self._effect_F = np.concatenate(self._effects)
        self._offset_U = np.cumsum([0, *map(len, self._effects[:-1])])
        self._drop_F = np.array([level.label == "drop" for unit in space.units for level in unit.levels])
        self._parent_U = np.array([-1 if unit.parent is None else unit.parent for unit in space.units])
        block_U = np.array([unit.block for unit in space.units])
        self._order_U = np.argsort(block_U, kind="stable")
        self._first_B = np.flatnonzero(np.diff(block_U[self._order_U], prepend=block_U.min() - 1))
        direction_UD = rng.standard_normal((len(block_U), _DIRECTIONS))
        direction_UD /= np.linalg.norm(direction_UD, axis=1, keepdims=True)
        amplitude_FD = np.sqrt(self._effect_F)[:, None] * np.repeat(
            direction_UD, [len(row) for row in self._effects], axis=0
        )
        self._amplitude_DF = np.ascontiguousarray(_rounded(amplitude_FD, _AMPLITUDE_STEP).T)
        self._weight_U: dict[tuple[str, int], Floats] = {}

    @property
    def fingerprint(self) -> str:
        """Digest of the space and all settings."""
        settings = [self.sequences, self.seed, self.interaction, self.saturation, self.spread, self.noise]
        return digest([self.space.fingerprint, *settings])

    @property
    def errors(self) -> list[list[float]]:
        """The effect in nats of every level of every unit, one list per unit.

        If `interaction` and `saturation` are 0, the expected fitness of a profile is the sum of the effects of its levels.
        """
        return [row.tolist() for row in self._effects]

    def expected(self, profiles: Sequence[Profile]) -> list[float]:
        """Return each profile's fitness in nats, as a mean over unlimited data."""
        return [value for tile in self._tiles(profiles) for value in self._expected(*self._terms(tile))]

    def evaluate(self, trials: Iterable[Trial]) -> Iterator[Evaluation]:
        """Yield one evaluation per trial; trials of one fidelity are computed together."""
        grouped: dict[Fidelity, list[Trial]] = {}
        for trial in trials:
            if isinstance(trial, SlopeTrial):
                yield SlopeEvaluation(trial, (), (), slopes=self._slopes(trial.profile, trial.fidelity))
            else:
                grouped.setdefault(trial.fidelity, []).append(trial)
        for fidelity, group in grouped.items():
            rows_S = fidelity.rows(self.sequences)
            value_SN = self._values([trial.profile for trial in group], fidelity, rows_S)
            for trial, values in zip(group, value_SN, strict=True):
                entropies = [_DENSE_CROSS_ENTROPY + value for value in values]
                yield Evaluation(trial, tuple(values), tuple(entropies))

    def _values(self, profiles: list[Profile], fidelity: Fidelity, rows_S: Ints) -> Iterator[list[float]]:
        weight_US = np.stack([self._weights(fidelity.data, int(row)) for row in rows_S], axis=1)
        for level_NU in self._tiles(profiles):
            at_NU, effect_NU = self._terms(level_NU)
            mean_N = np.array(self._expected(at_NU, effect_NU))
            sum_N = effect_NU.sum(axis=1)
            scale_N = np.divide(mean_N, sum_N, out=np.zeros_like(mean_N), where=sum_N > 0)
            value_NS = (effect_NU @ weight_US) * scale_N[:, None]
            if self.noise:
                value_NS *= 1 + self.noise * _draws(_keys(at_NU, self._salt(fidelity)), rows_S)
            yield from value_NS.tolist()

    def _slopes(self, profile: Profile, fidelity: Fidelity) -> SlopeSums:
        moves = Moves(self.space, profile)
        effect, effect_F = moves.sums(self._effect_F)
        pairs, pairs_F = moves.pairs(self._amplitude_DF)
        total, total_F = effect + self.interaction * pairs, effect_F + self.interaction * pairs_F
        mean, *mean_F = self._bent([total, *total_F])
        scale = mean / effect if effect else 0.0
        scale_F = np.divide(mean_F, effect_F, out=np.zeros_like(effect_F), where=effect_F > 0)
        key_F = _keys(moves.key_U[None], self._salt(fidelity, " slopes"))
        key_F = _mixed(key_F + np.arange(len(effect_F)).astype(np.uint64))
        rows_S = fidelity.rows(self.sequences)
        sums_FS2 = np.zeros((np.count_nonzero(moves.other_F), len(rows_S), 2))
        for s, row in enumerate(rows_S):
            weight_F = self._weights(fidelity.data, int(row))[moves.unit_F]
            heavy, heavy_F = moves.sums(self._effect_F * weight_F)
            own_F = heavy_F * scale_F - heavy * scale
            if self.noise:
                own_F *= 1 + self.noise * _draws(key_F, rows_S[s : s + 1])[:, 0]
            sums_FS2[:, s, int(profile == DENSE)] = own_F[moves.other_F]
        return SlopeSums(moves.labels, sums_FS2, len(rows_S))

    def _salt(self, fidelity: Fidelity, purpose: str = "") -> int:
        return crc32(f"{self.seed} {fidelity.data} {fidelity.length}{purpose}".encode())

    def _tiles(self, profiles: Sequence[Profile]) -> Iterator[Ints]:
        at_once = max(_AT_ONCE // len(self.space.units), 1)
        for start in range(0, len(profiles), at_once):
            yield np.array(profiles[start : start + at_once], np.int64)

    def _terms(self, level_NU: Ints) -> tuple[Ints, Floats]:
        """Return two arrays (N, U): the index of every unit's level among the F levels, and the level's effect in nats.

        Units under a dropped branch count as units at level 0 with effect 0.
        """
        at_NU = level_NU + self._offset_U
        child_U = self._parent_U >= 0
        off_NU = np.zeros(level_NU.shape, np.bool_)
        off_NU[:, child_U] = self._drop_F[at_NU[:, self._parent_U[child_U]]]
        at_NU = np.where(off_NU, self._offset_U, at_NU)
        return at_NU, np.where(off_NU, 0.0, self._effect_F[at_NU])

    def _expected(self, at_NU: Ints, effect_NU: Floats) -> list[float]:
        total_N = effect_NU.sum(axis=1)
        if self.interaction:
            total_N = total_N + self.interaction * self._pairs(at_NU, effect_NU > 0)
        return self._bent(total_N)

    def _bent(self, totals: Iterable[float]) -> list[float]:
        if not self.saturation:
            return [float(total) for total in totals]
        return [-math.expm1(-self.saturation * float(total)) / self.saturation for total in totals]

    def _pairs(self, at_NU: Ints, present_NU: npt.NDArray[np.bool_]) -> Floats:
        """Return the sum of inner products over pairs of vectors, (N,).

        Pairs in one block count twice, pairs in neighbouring blocks once. The sum over pairs in one block is computed
        as the squared sum of the vectors minus the sum of their squares.
        """
        pairs_N = np.zeros(len(at_NU))
        at_NU, present_NU = at_NU[:, self._order_U], present_NU[:, self._order_U]
        for amplitude_F in self._amplitude_DF:
            part_NU = amplitude_F[at_NU] * present_NU
            part_NB = np.add.reduceat(part_NU, self._first_B, axis=1)
            pairs_N += (part_NB**2).sum(axis=1) - (part_NU**2).sum(axis=1)
            pairs_N += (part_NB[:, 1:] * part_NB[:, :-1]).sum(axis=1)
        return pairs_N

    def _weights(self, data: str, row: int) -> Floats:
        """Return the weight of each unit's effect on one sequence, (U,)."""
        found = self._weight_U.get((data, row))
        if found is None:
            rng = np.random.default_rng([self.seed, crc32(data.encode()), row])
            log_U = self.spread * (rng.standard_normal() + rng.standard_normal(len(self.space.units)))
            weight_U = np.minimum(np.exp(log_U - self.spread**2), _LARGEST_WEIGHT)
            found = self._weight_U[data, row] = _rounded(weight_U, _WEIGHT_STEP)
        return found


def _effects(space: Space, rng: np.random.Generator) -> list[Floats]:
    """Draw the effect of each level of each unit, in nats."""
    draw_U = rng.lognormal(size=len(space.units))
    draw_U /= draw_U.sum()
    effects = [
        _rounded(draw * _rise(unit, space.kinds[0]), _EFFECT_STEP)
        for draw, unit in zip(draw_U, space.units, strict=True)
    ]
    for unit, children, row in zip(space.units, space.children, effects, strict=True):
        if children and unit.droppable:
            row[unit.index["drop"]] += sum(float(effects[c].max()) for c in children)
    return effects


def _rise(unit: Unit, kind: str) -> Floats:
    """Return the effect of each level relative to the largest: 0 at the most expensive, 1 at the cheapest or `drop`."""
    if unit.droppable:
        return np.array([float(level.label == "drop") for level in unit.levels])
    costs = np.array([level.costs[kind] for level in unit.levels], float)
    fall = (costs.max() - costs) / max(np.ptp(costs), 1)
    return np.asarray(np.expm1(_STEEPNESS * fall) / math.expm1(_STEEPNESS), np.float64)


def _rounded(values: Floats, step: float) -> Floats:
    return np.asarray(np.rint(values / step) * step, np.float64)


def _keys(at_NU: Ints, salt: int) -> npt.NDArray[np.uint64]:
    """Return a hash (N,) of each row of table indices."""
    digests = (
        hashlib.blake2b(row, digest_size=8, salt=salt.to_bytes(16)).digest() for row in at_NU.astype(np.int32)
    )
    return np.frombuffer(b"".join(digests), np.uint64)


def _draws(key_N: npt.NDArray[np.uint64], rows_S: Ints) -> Floats:
    """Return uniform draws (N, S) of mean 0 and standard deviation 1, each a hash of a profile's key and a sequence."""
    hash_NS = _mixed(key_N[:, None] + _mixed(rows_S.astype(np.uint64)))
    unit_NS = (hash_NS >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.asarray(math.sqrt(3) * (2 * unit_NS - 1), np.float64)


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Hash each 64-bit word, so that every bit of the input affects every bit of the result.

    References:
        Steele, Lea and Flood (2014), "Fast splittable pseudorandom number generators": the finaliser of SplitMix64.
    """
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def check_share(name: str, value: float, most: float = 1.0) -> None:
    """Refuse a setting outside 0 to `most`.

    Args:
        name: name of the setting in the error's message.
        value: value of the setting.
        most: largest value that is allowed.

    Raises:
        ValueError: the value is below 0 or above `most`.
    """
    if not 0 <= value <= most:
        raise ValueError(f"{name} {value} is outside 0 to {most:g}; give a share within it")
