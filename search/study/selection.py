"""The final choice: which finalist, if any, is significantly better than uniform on validation documents."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...spaces.space import Limits, Profile
from .archive import ParetoArchive

Floats = npt.NDArray[np.float64]

FINALISTS = 4
LEVEL = 0.05
FEWEST_DOCUMENTS = 20
EXACT_DOCUMENTS = 16
FLIPS = 9_999


@dataclass(frozen=True)
class Finalist:
    """A profile with its validation values, one per sequence."""

    profile: Profile
    values: Sequence[float]


@dataclass(frozen=True)
class Contest:
    """One budget: the uniform profile against at most four finalists fixed by calibration values.

    Attributes:
        uniform: the profile to beat.
        finalists: best calibration value first.
        documents: the document of each validation sequence.
    """

    uniform: Finalist
    finalists: Sequence[Finalist]
    documents: Sequence[int]


@dataclass(frozen=True)
class Verdict:
    """One paired test: how much lower a finalist is than uniform, and how surprising that would be by chance.

    Attributes:
        profile: profile of the finalist.
        gain: mean over documents of uniform minus finalist; above 0 is better than uniform.
        p: one-sided p-value of the test.
        adjusted: p-value after Holm's correction over all finalists of all budgets.
    """

    profile: Profile
    gain: float
    p: float
    adjusted: float


@dataclass(frozen=True)
class Choice:
    """The winner of one budget.

    Attributes:
        profile: the significant finalist of lowest validation mean, or uniform.
        significant: whether it beats uniform; None with fewer than 20 documents, where nothing is claimed.
        verdicts: one per finalist.
    """

    profile: Profile
    significant: bool | None
    verdicts: tuple[Verdict, ...]


def finalists(
    archive: ParetoArchive, limits: Limits, uniform: Profile, most: int = FINALISTS
) -> list[Profile]:
    """The profiles of best calibration value within the limits that are better there than `uniform`."""
    key = archive.space.canonical(uniform)
    ranked = archive.ranked(limits)
    place = next((i for i, entry in enumerate(ranked) if entry.profile == key), len(ranked))
    return [entry.profile for entry in ranked[:place][:most]]


def document_means(values: Sequence[float], documents: Sequence[int]) -> Floats:
    """Mean value of the sequences of each document, in order of document number."""
    _, place = np.unique(np.asarray(documents), return_inverse=True)
    sums = np.bincount(place, weights=np.asarray(values, float))
    return np.asarray(sums / np.bincount(place), np.float64)


def sign_flip(gains: Floats, seed: int) -> float:
    """One-sided p-value of a mean above 0 when, by chance alone, the sign of each gain were a coin flip.

    All 2^n sign vectors for at most 16 documents, otherwise 9,999 random ones with one added to both counts.

    References:
        Phipson and Smyth (2010), "Permutation P-values should never be zero".
    """
    count = len(gains)
    observed = float(gains.sum())
    slack = 1e-12 * float(np.abs(gains).sum())
    if count <= EXACT_DOCUMENTS:
        bits = np.arange(2**count)[:, None] >> np.arange(count) & 1
        return float(((1 - 2 * bits) @ gains >= observed - slack).mean())
    signs = np.random.default_rng(seed).integers(0, 2, size=(FLIPS, count), dtype=np.int8)
    reached = ((1 - 2 * signs) @ gains >= observed - slack).sum()
    return float((1 + reached) / (1 + FLIPS))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number; reject those at most the level wanted.

    References:
        Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    scaled = np.minimum(p[order] * np.arange(len(p), 0, -1), 1.0)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(scaled) if len(p) else scaled
    return [float(a) for a in adjusted]


def choose(contests: Sequence[Contest], seed: int) -> list[Choice]:
    """The winner of each budget; uniform where no finalist is significantly better at 5 % for the whole run.

    Raises:
        ValueError: values and documents differ in number, or a value is not finite.
    """
    gains: list[tuple[int, Finalist, Floats]] = []
    for number, contest in enumerate(contests):
        base = _means(contest.uniform, contest.documents)
        for finalist in contest.finalists:
            gains.append((number, finalist, base - _means(finalist, contest.documents)))
    p_values = [sign_flip(gain, seed) for _, _, gain in gains]
    verdicts: list[list[Verdict]] = [[] for _ in contests]
    for (number, finalist, gain), p, adjusted in zip(gains, p_values, holm(p_values), strict=True):
        verdicts[number].append(Verdict(finalist.profile, float(gain.mean()), p, adjusted))
    return [_decide(c, found) for c, found in zip(contests, verdicts, strict=True)]


def _decide(contest: Contest, verdicts: list[Verdict]) -> Choice:
    if len(set(contest.documents)) < FEWEST_DOCUMENTS:
        return Choice(contest.uniform.profile, None, tuple(verdicts))
    better = [v for v in verdicts if v.adjusted <= LEVEL]
    if not better:
        return Choice(contest.uniform.profile, False, tuple(verdicts))
    return Choice(max(better, key=lambda v: v.gain).profile, True, tuple(verdicts))


def _means(finalist: Finalist, documents: Sequence[int]) -> Floats:
    if len(finalist.values) != len(documents):
        raise ValueError(
            f"{len(finalist.values)} validation values for {len(documents)} sequences; evaluate every finalist "
            "on all of them"
        )
    if not np.isfinite(finalist.values).all():
        raise ValueError("a validation value is not finite; leave failed profiles out of the finalists")
    return document_means(finalist.values, documents)
