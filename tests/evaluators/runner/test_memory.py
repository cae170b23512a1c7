"""The memory plan hands out no byte twice, and keeps as much as there is room for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.evaluators.runner.block_weights import Residency
from paretopress.evaluators.runner.memory import STATES, MemoryPlan, Needs, share_out
from paretopress.spaces.levels.builders import BuilderConfig, build
from paretopress.spaces.model.checkpoint import Checkpoint
from paretopress.spaces.model.structure import Block, Branch, Ends, Linear, Structure, find_structure
from tests.architectures import save_model

PLAIN = BuilderConfig(quantizer="rtn", pruner="magnitude")
LABELS = ("w2g8", "w4g8a", "w8", "s50", "2:4", "2:4+w4g8")
HOST = 10**15


def structure_of(shapes: tuple[tuple[tuple[int, int], ...], ...]) -> Structure:
    """One block for each list of (out, in), a layer for each shape."""
    blocks = []
    for index, layers in enumerate(shapes):
        path = f"layers.{index}"
        linears = tuple(Linear(f"{path}.{i}", inner, outer) for i, (outer, inner) in enumerate(layers))
        branch = Branch("mlp", (path,), linears, tuple((linear.path,) for linear in linears), 0)
        blocks.append(Block(index, path, (branch,)))
    return Structure("Model", "layers", tuple(blocks), 0, Ends(Linear("e", 8, 9), Linear("h", 8, 9), False))


@dataclass(frozen=True)
class Case:
    """What the plan is made from, but for the budgets."""

    structure: Structure
    labels: Mapping[str, tuple[str, ...]]
    needs: Needs
    dtype: torch.dtype = torch.float16
    slice_size: int = 8
    devices: int = 1

    def plan(self, budget: int, host: int = 0) -> MemoryPlan:
        return share_out(
            budget,
            host,
            self.needs,
            self.structure,
            self.labels,
            self.dtype,
            self.slice_size,
            devices=self.devices,
        )

    def ready(self, block: Block) -> int:
        """Bytes of the block's dense weights and of all its levels as dense matrices."""
        return sum(
            self.dtype.itemsize * linear.out_features * linear.in_features
            for linear in block.linears
            for _ in ("dense", *self.labels[linear.path])
        )

    def packed(self, block: Block) -> int:
        """Bytes of the block's dense weights and of what its levels store, from levels that are built."""
        return sum(
            self.dtype.itemsize * linear.out_features * linear.in_features
            + sum(
                _stored(linear.out_features, linear.in_features, label) for label in self.labels[linear.path]
            )
            for linear in block.linears
        )

    def most_on_a_device(self, kept: frozenset[int]) -> int:
        """Bytes of the kept blocks on the device that has most; devices have neighbouring blocks."""
        sizes = [0] * self.devices
        for block in self.structure.blocks:
            if block.index in kept:
                sizes[block.index * self.devices // len(self.structure.blocks)] += self.ready(block)
        return max(sizes)

    @property
    def arriving(self) -> int:
        """Bytes of packed blocks on their way: one that is unpacked and the next."""
        return 2 * max(map(self.packed, self.structure.blocks))

    @property
    def visit(self) -> int:
        """Bytes of a block that streams, and of the next one that arrives meanwhile."""
        return max(map(self.ready, self.structure.blocks)) + self.arriving

    @property
    def least(self) -> int:
        """The smallest budget at which every block can stream."""
        return self.needs.working + self.visit + 4 * self.needs.candidate

    @property
    def ample(self) -> int:
        """The smallest budget at which a slice's states fit beside every block."""
        everything = self.most_on_a_device(frozenset(range(len(self.structure.blocks))))
        states = 2 * (self.slice_size + 1) * self.needs.candidate
        return self.needs.working + everything + self.arriving + states


_SIZES: dict[tuple[int, int, str], int] = {}


def _stored(out_features: int, in_features: int, label: str) -> int:
    key = (out_features, in_features, label)
    if key not in _SIZES:
        weight = torch.randn(key[:2], generator=torch.Generator().manual_seed(0)).half()
        _SIZES[key] = build(weight, None, [label], config=PLAIN)[label].bits // 8
    return _SIZES[key]


SHAPES = st.tuples(st.sampled_from([8, 16, 40]), st.sampled_from([8, 24, 32]))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    blocks = draw(st.lists(st.lists(SHAPES, min_size=1, max_size=3).map(tuple), min_size=1, max_size=7))
    structure = structure_of(tuple(blocks))
    labels = {
        linear.path: tuple(sorted(draw(st.sets(st.sampled_from(LABELS), max_size=3))))
        for linear in structure.linears
    }
    position = draw(
        st.sampled_from([0, 1])
    )  # a tile of STATES positions is far more, or far less, than blocks
    needs = Needs(draw(st.integers(0, 5000)), draw(st.integers(1, 2000)), position)
    return Case(
        structure,
        labels,
        needs,
        draw(st.sampled_from([torch.float16, torch.float32])),
        draw(st.integers(1, 128)),
        draw(st.integers(1, 3)),
    )


def room_of(case: Case) -> st.SearchStrategy[int]:
    """Budgets from the smallest that works to one that holds everything and a full tile."""
    tile = 2 * STATES * case.needs.position
    anywhere = st.integers(case.least, max(case.least, case.ample) + tile + 1000)
    full = case.least + max(tile, 8 * case.needs.candidate) - 4 * case.needs.candidate
    blocks = sum(map(case.ready, case.structure.blocks))
    return anywhere | st.integers(full, full + blocks)


@settings(deadline=None, max_examples=50)
@given(st.data(), cases())
def test_what_is_handed_out_never_exceeds_the_budget(data: st.DataObject, case: Case) -> None:
    budget, host = data.draw(room_of(case)), data.draw(st.integers(0, 30_000))
    plan = case.plan(budget, host)
    blocks = case.structure.blocks
    kept = plan.residency.device
    streams = len(kept) < len(blocks)
    visited = case.visit if streams else case.arriving
    assert case.needs.working + plan.states + case.most_on_a_device(kept) + visited <= budget
    assert plan.states >= 4 * case.needs.candidate or not streams
    assert not kept & plan.residency.host
    assert kept | plan.residency.host <= set(range(len(blocks)))
    # Pinned memory is given in powers of two.
    assert sum(2 * case.packed(blocks[index]) for index in plan.residency.host) <= host
    if kept and streams:
        assert plan.states >= 2 * STATES * case.needs.position
    assert (plan.budget, plan.blocks) == (budget, len(blocks))


@settings(deadline=None, max_examples=50)
@given(st.data(), cases())
def test_everything_is_kept_where_a_slice_fits_beside_it(data: st.DataObject, case: Case) -> None:
    budget = case.ample + data.draw(st.integers(0, 10**6))
    plan = case.plan(budget, HOST)
    assert plan.residency == Residency(frozenset(range(len(case.structure.blocks))))
    assert plan.states >= 2 * (case.slice_size + 1) * case.needs.candidate


@settings(deadline=None, max_examples=50)
@given(st.data(), cases())
def test_more_memory_keeps_no_less(data: st.DataObject, case: Case) -> None:
    budgets = sorted(data.draw(st.lists(room_of(case), min_size=2, max_size=2)))
    hosts = sorted(data.draw(st.lists(st.integers(0, 30_000), min_size=2, max_size=2)))
    less, more = (case.plan(budget, hosts[0]).residency for budget in budgets)
    assert less.device <= more.device
    assert less.host <= more.host | more.device
    assert less.host <= case.plan(budgets[0], hosts[1]).residency.host


@settings(deadline=None, max_examples=50)
@given(st.data(), cases())
def test_too_little_is_refused_with_what_is_needed(data: st.DataObject, case: Case) -> None:
    least = min(case.least, case.ample)
    budget = data.draw(st.integers(-1000, least - 1))
    with pytest.raises(
        ValueError,
        match=rf"^evaluation\.memory leaves {budget:,} bytes, but one block, its computation and two micro-batches "
        rf"need {case.least:,}; raise evaluation\.memory, or lower evaluation\.micro_batch or evaluation\.chunk$",
    ):
        case.plan(budget)
    case.plan(least)


def uniform(blocks: int, devices: int = 1) -> Case:
    """Blocks of 1,024 weights, dense alone."""
    structure = structure_of((((32, 32),),) * blocks)
    labels: dict[str, tuple[str, ...]] = dict.fromkeys((linear.path for linear in structure.linears), ())
    return Case(structure, labels, Needs(500, 10**4, 0), devices=devices)


def test_blocks_stay_one_by_one() -> None:
    case = uniform(20)
    # States for two micro-batches, doubled, come first; then each block has to fit whole.
    first = case.least + 4 * case.needs.candidate
    for room, count in [(0, 0), (2047, 0), (2048, 1), (5 * 2048 - 1, 4), (5 * 2048, 5), (19 * 2048, 19)]:
        assert case.plan(first + room).residency.device == frozenset(range(count))


def test_no_block_is_unpacked_twice_where_nothing_streams() -> None:
    case = uniform(20)
    blocks = 20 * 2048
    assert case.plan(case.ample).states == 2 * 9 * case.needs.candidate
    assert case.plan(case.ample - 1).states == case.ample - 1 - case.needs.working - blocks - case.visit


def test_levels_of_embedding_and_head_have_their_room() -> None:
    case = uniform(20)
    ends = case.structure.ends
    more = replace(
        case, labels={**case.labels, ends.embedding.path: ("w4g8", "w3g8"), ends.head.path: ("w4g8",)}
    )
    levels = 2 * (2 * prod((ends.embedding.in_features, ends.embedding.out_features)))
    levels += 2 * prod((ends.head.in_features, ends.head.out_features))
    plan = more.plan(case.ample + levels)
    assert plan.states == case.plan(case.ample).states
    assert len(plan.residency.device) == 20


def test_every_device_keeps_its_first_blocks() -> None:
    case = uniform(20, devices=2)
    plan = case.plan(case.least + 4 * case.needs.candidate + 2 * 2048)
    assert plan.residency.device == {0, 1, 10, 11}


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_pinned_blocks_have_the_bytes_of_a_real_model(name: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(save_model(name, tmp_path / name))
    structure = find_structure(checkpoint.skeleton())
    labels = dict.fromkeys((linear.path for linear in structure.linears), LABELS)
    case = Case(structure, labels, Needs(0, 1, 0))
    pinned = sum(2 * case.packed(block) for block in structure.blocks)
    weights = sum(prod(checkpoint.tensor(f"{linear.path}.weight").shape) for linear in structure.linears)
    assert sum(map(case.ready, structure.blocks)) == 2 * weights * (1 + len(LABELS))
    everything = frozenset(range(len(structure.blocks)))
    assert case.plan(case.least, pinned).residency == Residency(frozenset(), everything)
    last = len(structure.blocks) - 1
    assert case.plan(case.least, pinned - 1).residency.host == everything - {last}


def test_a_plan_is_told_in_one_line() -> None:
    case = uniform(20)
    some = case.plan(case.least + 4 * case.needs.candidate + 5 * 2048, 8 * 4096)
    assert some.residency == Residency(frozenset(range(5)), frozenset(range(5, 13)))
    assert some.describe() == "blocks: 5 on the device, 8 pinned, 7 on disk; hidden states: 0.0 of 0.0 GB"
    assert (
        replace(some, residency=Residency(frozenset(range(20))))
        .describe()
        .startswith("blocks: 20 on the device; ")
    )
    told = MemoryPlan(12_345_678_901, 2_345_678_901, Residency(frozenset()), 32).describe()
    assert told == "blocks: 32 on disk; hidden states: 2.3 of 12.3 GB"
