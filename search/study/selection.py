"""The final choice, which tests on validation documents whether a finalist is better than the uniform profile."""

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
    """A profile that takes part in the final choice.

    Attributes:
        profile: profile of the model.
        values: fitness of each validation sequence.
    """

    profile: Profile
    values: Sequence[float]


@dataclass(frozen=True)
class Contest:
    """The comparison, for one budget, of finalists chosen on calibration text with the uniform profile.

    Attributes:
        uniform: uniform profile of the budget, with its validation values.
        finalists: at most four finalists, the one of lowest calibration fitness first.
        documents: number of the document that each validation sequence comes from.
    """

    uniform: Finalist
    finalists: Sequence[Finalist]
    documents: Sequence[int]


@dataclass(frozen=True)
class Verdict:
    """The result of one paired test of a finalist against the uniform profile.

    Attributes:
        profile: profile of the finalist.
        gain: mean over documents of the uniform profile's fitness minus the finalist's; positive if the finalist is
            better.
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
        profile: profile of the significant finalist with the largest gain, or the uniform profile if there is none.
        significant: whether a finalist is significantly better than the uniform profile; None with fewer than 20
            documents, which are too few for a claim.
        verdicts: test results, one per finalist.
    """

    profile: Profile
    significant: bool | None
    verdicts: tuple[Verdict, ...]


def finalists(
    archive: ParetoArchive, limits: Limits, uniform: Profile, most: int = FINALISTS
) -> list[Profile]:
    """Return the profiles of lowest calibration fitness within the limits.

    Profiles that the archive does not rank above `uniform` are left out.

    Args:
        archive: archive of the search.
        limits: limits of the budget.
        uniform: uniform profile of the budget.
        most: largest number of profiles to return.
    """
    key = archive.space.canonical(uniform)
    ranked = archive.ranked(limits)
    place = next((i for i, entry in enumerate(ranked) if entry.profile == key), len(ranked))
    return [entry.profile for entry in ranked[:place][:most]]


def document_means(values: Sequence[float], documents: Sequence[int]) -> Floats:
    """Return the mean over the sequences of each document, (D,) for D documents in order of their numbers.

    Args:
        values: value of each sequence.
        documents: number of the document that each sequence comes from.
    """
    _, place = np.unique(np.asarray(documents), return_inverse=True)
    sums = np.bincount(place, weights=np.asarray(values, float))
    return np.asarray(sums / np.bincount(place), np.float64)


def sign_flip(gains: Floats, seed: int) -> float:
    """Return the one-sided p-value of the mean gain in a paired sign-flip test.

    Under the null hypothesis each gain is equally likely to have either sign. The p-value is the share of sign vectors
    that give at least the observed sum. For up to 16 documents these are all 2^n sign vectors. For more documents they
    are 9,999 random ones, and one is added to both counts.

    Args:
        gains: gain of each document, (D,).
        seed: seed of the random sign vectors.

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
    """Return p-values with Holm's correction for the number of tests, in the order of `p_values`.

    Rejecting the hypotheses whose adjusted p-value is at most a level bounds the probability of any false rejection by
    that level.

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
    """Return the choice for each budget.

    The uniform profile wins where no finalist is significantly better. The significance level of 5 % holds for all
    finalists of all budgets together.

    Args:
        contests: comparison of each budget.
        seed: seed of the random sign vectors of the tests.

    Raises:
        ValueError: there are not as many values as documents, or a value is not finite.
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
