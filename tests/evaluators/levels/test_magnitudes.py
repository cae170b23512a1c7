"""Errors from weights alone, against their plain definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.evaluators.levels.magnitudes import lamp_error, magnitude_error

SEEDS = st.integers(0, 2**32 - 1)


def plain_lamp(weight: np.ndarray) -> np.ndarray:
    """Each weight's square over the sum of the squares of all at least as large."""
    square = weight.ravel() ** 2
    scores = [value / square[square >= value].sum() for value in square]
    return np.array(scores).reshape(weight.shape)


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_lamp_sums_the_scores_of_what_is_removed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight, keep = rng.standard_normal((4, 6)), rng.random((4, 6)) < 0.5
    changed = np.where(keep, weight * 1.5, 0.0)
    found = lamp_error(torch.from_numpy(weight), torch.from_numpy(changed), "s50")
    assert found == pytest.approx(plain_lamp(weight)[~keep].sum(), rel=1e-12)


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_lamp_weighs_rounding_like_removal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((4, 6))
    rounded = np.round(weight)
    expected = (plain_lamp(weight) * (weight - rounded) ** 2 / weight**2).sum()
    found = lamp_error(torch.from_numpy(weight), torch.from_numpy(rounded), "w3g16")
    assert found == pytest.approx(expected, rel=1e-12)


@given(SEEDS, st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_the_least_sum_at_a_sparsity_is_one_threshold_for_all_layers(seed: int, removed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal((1, 5)), 10 * rng.standard_normal((1, 5)) ** 3]

    def error(layer: int, count: int) -> float:
        weight = weights[layer]
        pruned = np.where(np.abs(weight) >= np.sort(np.abs(weight).ravel())[count], weight, 0.0)
        return lamp_error(torch.from_numpy(weight), torch.from_numpy(pruned), "s50")

    counts = [(n, removed - n) for n in range(5) if 0 <= removed - n < 5]
    if not counts:
        return
    best = min(counts, key=lambda pair: error(0, pair[0]) + error(1, pair[1]))
    scores = sorted((s, layer) for layer, w in enumerate(weights) for s in plain_lamp(w).ravel())
    chosen = [layer for _, layer in scores[:removed]]
    if max(chosen.count(0), chosen.count(1)) < 5:
        assert best == (chosen.count(0), chosen.count(1))


def test_magnitude_is_relative_energy() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 12.0]])
    pruned = torch.tensor([[0.0, 4.0], [0.0, 12.0]])
    assert magnitude_error(weight, pruned) == pytest.approx(9 / 169)
    assert magnitude_error(weight, torch.zeros(2, 2)) == pytest.approx(1.0)
    assert magnitude_error(weight, weight) == 0.0
