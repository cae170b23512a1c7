import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretopress.search.allocation.sensitivity import Sensitivity, probes
from paretopress.search.frontier.merging import Floats, Measurement
from paretopress.search.frontier.merging import merge as merge_measurements
from paretopress.spaces.space import Profile, Space
from paretopress.spaces.unit import Level, Unit
from tests.toys import ToyEvaluator, chain, joint_space

LENGTH = 16
Changes = Mapping[int, Mapping[int, float]]
"""Unit to level to change from the base's level."""


def make_space(units: int, levels: int, *, alike: bool) -> Space:
    """Units in one chain of levels; not `alike`: every one with labels of its own, so that nothing is smoothed."""
    return Space(
        tuple(
            Unit(f"u{u}", (f"u{u}",), u, "mlp", _levels(levels, "" if alike else f"-{u}"))
            for u in range(units)
        ),
        weights=units,
    )


def _levels(count: int, suffix: str) -> tuple[Level, ...]:
    return chain((f"w{n + 2}{suffix}", {"bits": n + 2}) for n in range(count))


def sensitivity(
    space: Space, base: Sequence[int], fitness: float, sequences: int, changes: Changes
) -> Sensitivity:
    labels = space.labels(tuple(base))
    deltas = {unit.name: {labels[u]: 0.0} for u, unit in enumerate(space.units)}
    for u, row in changes.items():
        deltas[space.units[u].name] |= {space.units[u].levels[n].label: d for n, d in row.items()}
    return Sensitivity(dict(zip(deltas, labels, strict=True)), sequences * LENGTH, fitness, deltas)


def merge(space: Space, found: Sequence[Sensitivity], fitness: float, anchor: Profile) -> Floats:
    return merge_measurements(space, [Measurement.of(space, s, LENGTH) for s in found], fitness, anchor)


def nearness(first: float, second: float) -> float:
    return max(math.exp(-abs(math.log(first / second))), 1e-3)


def star(values: np.ndarray, base: Sequence[int]) -> Changes:
    """All differences of (U, L) values from a base."""
    return {
        u: {n: float(v - row[base[u]]) for n, v in enumerate(row) if n != base[u]}
        for u, row in enumerate(values)
    }


def test_one_measurement_from_the_anchor_is_the_table() -> None:
    space = make_space(3, 4, alike=False)
    values = np.random.default_rng(0).uniform(size=(3, 4))
    table = merge(space, [sensitivity(space, (3, 3, 3), 0.1, 2, star(values, (3, 3, 3)))], 0.5, (3, 3, 3))
    np.testing.assert_allclose(table, values - values[:, 3:], atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.integers(2, 5))
def test_measurements_that_agree_but_for_scale_give_what_they_agree_on(
    seed: int, units: int, levels: int
) -> None:
    rng = np.random.default_rng(seed)
    space = make_space(units, levels, alike=False)
    values = rng.uniform(0.1, 1.0, (units, levels))
    far, near = (tuple(rng.integers(levels, size=units).tolist()) for _ in range(2))
    scale = rng.uniform(0.5, 3.0)
    table = merge(
        space,
        [
            sensitivity(space, far, 0.1, 3, star(values / scale, far)),
            sensitivity(space, near, 0.5, 2, star(values, near)),
        ],
        0.5,
        (0,) * units,
    )
    np.testing.assert_allclose(table, values - values[:, :1], atol=1e-9)


@given(st.integers(0, 2**32 - 1))
def test_differences_weigh_sequences_and_nearness(seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels, fitness = 4, 0.6
    space = make_space(1, levels, alike=False)
    fitnesses = rng.permutation([0.1, 0.3, 0.5]).tolist()
    bases = [int(n) for n in rng.integers(levels, size=3)]
    bases[fitnesses.index(0.1)] = levels - 1  # the farthest measures everything
    found = []
    for base, of_base in zip(bases, fitnesses, strict=True):
        reach = range(levels) if of_base == 0.1 else [n for n in (base - 1, base + 1) if 0 <= n < levels]
        changes = {n: float(rng.normal()) for n in reach if n != base}
        found.append((base, of_base, int(rng.integers(1, 5)), changes))

    # The plain definition: rows of weighted differences, what is further scaled to what is nearer.
    rows: list[tuple[int, int, float, float]] = []
    for base, of_base, sequences, changes in sorted(found, key=lambda each: each[1]):
        if rows:
            known = solve(levels, rows)
            seen = np.array([known[n] - known[base] for n in changes])
            now = np.array(list(changes.values()))
            scale = min(max(float(seen @ now) / float(seen @ seen), 0.1), 10.0)
            rows = [(a, b, w, scale * d) for a, b, w, d in rows]
        weight = sequences * nearness(of_base, fitness)
        rows += [(n, base, weight, change) for n, change in changes.items()]
    sensitivities = [
        sensitivity(space, (base,), of_base, sequences, {0: changes})
        for base, of_base, sequences, changes in sorted(found, key=lambda each: each[1] != 0.1)
    ]
    table = merge(space, sensitivities, fitness, (levels - 1,))
    np.testing.assert_allclose(table[0], solve(levels, rows), rtol=1e-7, atol=1e-9)


def solve(levels: int, rows: Sequence[tuple[int, int, float, float]]) -> np.ndarray:
    """Weighted least squares of e[a] - e[b] = d, relative to the last level."""
    left, right = np.zeros((len(rows), levels)), np.zeros(len(rows))
    for i, (a, b, weight, change) in enumerate(rows):
        left[i, a], left[i, b] = math.sqrt(weight), -math.sqrt(weight)
        right[i] = math.sqrt(weight) * change
    found = np.linalg.lstsq(left, right, rcond=None)[0]
    return np.asarray(found - found[-1])


def test_what_was_not_measured_is_out_of_reach_and_what_failed_is_worst() -> None:
    space = make_space(2, 4, alike=False)
    changes = {0: {1: 0.2, 0: math.inf}, 1: {1: 0.1, 2: -0.3}}
    table = merge(space, [sensitivity(space, (3, 3), 0.1, 1, changes)], 0.5, (3, 3))
    assert table[0, 2] == table[1, 0] == math.inf
    assert table[0, 0] == pytest.approx(1 + 10 * (0.2 + 0.1 + 0.3))
    assert table[1, 2] == pytest.approx(-0.3)


def test_products_of_unit_and_level_are_not_changed_by_smoothing() -> None:
    space = make_space(4, 3, alike=True)
    values = np.outer([1.0, 2.0, 0.5, 3.0], [0.4, 0.1, 0.0])
    table = merge(space, [sensitivity(space, (2,) * 4, 0.1, 1, star(values, (2,) * 4))], 0.5, (2,) * 4)
    np.testing.assert_allclose(table, values, rtol=1e-9)


def test_smoothing_brings_noisy_products_nearer_to_the_truth() -> None:
    space = make_space(40, 5, alike=True)
    rng = np.random.default_rng(0)
    truth = np.outer(rng.lognormal(0, 1, 40), [1.0, 0.4, 0.15, 0.05, 0.0])
    noisy = truth * (1 + 0.4 * rng.standard_normal(truth.shape))
    table = merge(space, [sensitivity(space, (4,) * 40, 0.1, 1, star(noisy, (4,) * 40))], 0.1, (4,) * 40)
    assert np.abs(table - truth).sum() < 0.8 * np.abs(noisy - truth).sum()
    many = merge(space, [sensitivity(space, (4,) * 40, 0.1, 4000, star(noisy, (4,) * 40))], 0.1, (4,) * 40)
    np.testing.assert_allclose(many, noisy, rtol=0.02, atol=0.01)


@given(st.integers(0, 2**32 - 1))
def test_a_drop_takes_its_units_along_wherever_it_is_measured(seed: int) -> None:
    space = joint_space()
    rng = np.random.default_rng(seed)
    evaluator = ToyEvaluator(space, seed)
    dearest = space.extreme("bits", largest=True)
    other = tuple(int(rng.integers(len(unit.levels))) for unit in space.units)
    found = [around(space, evaluator, base) for base in (dearest, other)]
    survey = merge(space, found[:1], 0.5, dearest)
    both = merge(space, found, 0.5, dearest)
    np.testing.assert_allclose(both, survey, rtol=1e-9, atol=1e-9)


def around(space: Space, evaluator: ToyEvaluator, base: Profile) -> Sensitivity:
    """Exact changes around a base."""
    measured = [(probe, evaluator.true(probe.profile)) for probe in probes(space, base)]
    return Sensitivity.of(space, base, LENGTH, evaluator.true(base), measured)
