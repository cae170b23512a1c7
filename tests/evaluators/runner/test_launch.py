"""Micro-batches side by side have the bits that each has alone, in the same order, however many there are."""

from collections.abc import Collection

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paretopress.evaluators.runner.launch import Launcher, Pace
from paretopress.spaces.levels.cuda_graphs import Replays

LENGTH, HIDDEN = 3, 5
COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=4)


class Doubling:
    """States to twice the states; `spoiled` widths give other last bits. Notes how many ran at once."""

    def __init__(self, sequences: int, spoiled: Collection[int] = ()) -> None:
        self.sequences = sequences
        self.spoiled = spoiled
        self.widths: list[int] = []

    def __call__(self, states_BTD: Tensor) -> Tensor:
        self.widths.append(len(states_BTD) // self.sequences)
        return states_BTD * (2 + 2**-22 if self.widths[-1] in self.spoiled else 2)


def micro_batches(count: int, sequences: int) -> list[Tensor]:
    """Each is its number and up, so that any two differ."""
    one = torch.arange(1, sequences * LENGTH * HIDDEN + 1).view(sequences, LENGTH, HIDDEN).float()
    return [one + 1000 * number for number in range(count)]


def same_bits(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(
        torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(found, expected, strict=True)
    )


@settings(deadline=None)
@given(COUNTS, st.integers(1, 3), st.integers(0, 4), st.sets(st.sampled_from([2, 4, 8, 16])), st.booleans())
def test_company_changes_neither_bits_nor_order(
    counts: list[int], sequences: int, power: int, spoiled: set[int], replayed: bool
) -> None:
    run = Doubling(sequences, spoiled)
    launcher = Launcher(run, 2**power, Replays() if replayed else None)
    for count in counts:
        batches = micro_batches(count, sequences)
        assert same_bits(launcher(batches), [batch * 2 for batch in batches])
        assert same_bits(batches, micro_batches(count, sequences))
    assert set(run.widths) <= {2**p for p in range(power + 1)}
    assert all(run.widths.count(width) <= 1 for width in spoiled)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 4))
def test_a_width_that_is_known_to_keep_the_bits_is_used(count: int, power: int) -> None:
    run = Doubling(2)
    launcher = Launcher(run, 2**power)
    for _ in range(2):
        run.widths.clear()
        launcher(micro_batches(count, 2))
    # As many of the widest as there are, then what is left in powers of two.
    whole, rest = divmod(count, 2**power)
    expected = [2**power] * whole + [2**p for p in reversed(range(power)) if rest & 2**p]
    assert run.widths == expected


def test_the_first_time_a_width_is_only_compared() -> None:
    run = Doubling(1)
    launcher = Launcher(run, 4)
    launcher(micro_batches(4, 1))
    assert run.widths == [1, 1, 1, 1, 4]


def test_one_wrong_output_among_many_is_noticed() -> None:
    widths = []

    def run(states_BTD: Tensor) -> Tensor:
        widths.append(len(states_BTD))
        output_BTD = states_BTD.clone()
        if len(states_BTD) == 8:
            output_BTD[-1, -1, -1] += 1
        return output_BTD

    launcher, batches = Launcher(run, 8), micro_batches(8, 1)
    for _ in range(3):
        assert same_bits(launcher(batches), batches)
    assert widths.count(8) == 1
    assert widths[-2:] == [4, 4]


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -0.0])
def test_what_hides_differences_decides_nothing(special: float) -> None:
    run = Doubling(1)
    launcher = Launcher(run, 4)
    hiding = [torch.full((1, LENGTH, HIDDEN), special) for _ in range(4)]
    telling = micro_batches(4, 1)
    for batches, widths in [(hiding, 1), (hiding, 1), (telling, 1), (hiding, 4), (telling, 4)]:
        run.widths.clear()
        assert same_bits(launcher(batches), [batch * 2 for batch in batches])
        assert run.widths == ([1, 1, 1, 1, 4] if widths == 1 else [4])


def test_zeros_of_another_sign_are_other_bits() -> None:
    def run(states_BTD: Tensor) -> Tensor:
        return states_BTD * (1 if len(states_BTD) == 1 else -1)

    launcher, batches = Launcher(run, 2), [torch.zeros(1, LENGTH, HIDDEN)] * 2
    for _ in range(2):
        assert same_bits(launcher(batches), batches)


def test_matrix_products_are_those_of_each_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 96, generator=generator)
    batches = list(torch.randn(21, 2, 7, 96, generator=generator))
    launcher = Launcher(lambda states_BTD: torch.nn.functional.silu(states_BTD @ weight) + states_BTD, 8)
    expected = [torch.nn.functional.silu(batch @ weight) + batch for batch in batches]
    for _ in range(3):
        assert same_bits(launcher(batches), expected)


@pytest.mark.parametrize("sequences", [1, 2, 3])
def test_outputs_begin_where_an_allocation_would(sequences: int) -> None:
    """A micro-batch of 60, 120 or 180 bytes: the middle of a larger output lies anywhere."""
    launcher, batches = Launcher(Doubling(sequences), 8), micro_batches(15, sequences)
    for _ in range(2):
        outputs = launcher(batches)
        assert all(states_BTD.data_ptr() % 64 == 0 for states_BTD in outputs)
        assert all(states_BTD.is_contiguous() for states_BTD in outputs)


def test_what_a_replay_returns_may_be_overwritten() -> None:
    memory = torch.empty(1, LENGTH, HIDDEN)

    def run(states_BTD: Tensor) -> Tensor:
        return torch.mul(states_BTD, 2, out=memory)

    batches = micro_batches(5, 1)
    assert same_bits(Launcher(run, 1, Replays())(batches), [batch * 2 for batch in batches])


@given(st.integers(0, 1 << 20), st.integers(1, 1 << 20))
def test_as_many_go_side_by_side_as_there_are_rows_for(rows: int, micro_batch: int) -> None:
    widest = Pace(rows=rows).widest(micro_batch)
    assert widest & (widest - 1) == 0
    assert widest == 1 or widest * micro_batch <= rows
    assert 2 * widest * micro_batch > rows


@given(st.integers(1, 10**12), st.integers(1, 1 << 20))
def test_a_gpu_replays_small_blocks_and_compiles_all_but_the_smallest(weights: int, rows: int) -> None:
    pace = Pace.of(weights, rows, torch.device("cuda"))
    assert pace.replayed == (2 * weights * rows < 0.2e12)
    assert pace.compiled == (2 * weights * rows >= 0.03e12)
    assert pace.rows == 32_768
    assert Pace.of(weights, rows, torch.device("cpu")) == Pace(compiled=False, replayed=False, rows=0)
