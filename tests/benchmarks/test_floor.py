"""The counting of work against plain enumeration, and the matrix rate."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.speed.floor import Work, best_cpu_rate, matrix_rate, work_left
from paretopress.spaces.model.structure import Block, Branch, Ends, Linear, Structure

WIDTH = 24


def _block(index: int) -> Block:
    path = f"blocks.{index}"
    attention = tuple(Linear(f"{path}.{name}", 8, out) for name, out in (("q", 24), ("k", 6)))
    mlp = (Linear(f"{path}.up", 8, 40),)
    return Block(
        index,
        path,
        (
            Branch("attention", (f"{path}.attention",), attention, (), 0),
            Branch("mlp", (f"{path}.mlp",), mlp, (), 0),
        ),
    )


STRUCTURE = Structure(
    "Model",
    "blocks",
    tuple(_block(i) for i in range(3)),
    0,
    Ends(Linear("embed", 8, 50), Linear("head", 8, 50), True),
)
PATHS = [linear.path for linear in STRUCTURE.linears]
LABELS = st.sampled_from([None, "w3", "w4", "drop"])


def enumerated(
    candidates: list[dict[str, str]], sequences: int, length: int, untaught: int
) -> tuple[float, float, float]:
    """Linear layers, attention and head, counted position by position for every sequence."""
    linear = attention = head = 0.0
    for sequence in range(sequences):
        models = candidates + ([{}] if sequence < untaught else [])
        ran: set[tuple[object, ...]] = set()
        for labels in models:
            prefix: tuple[object, ...] = ()
            for block in STRUCTURE.blocks:
                prefix = (*prefix, *(labels.get(layer.path) for layer in block.linears))
                if prefix in ran:
                    continue
                ran.add(prefix)
                for branch in block.branches:
                    if {labels.get(layer.path) for layer in branch.linears} == {"drop"}:
                        continue
                    for layer in branch.linears:
                        linear += 2 * length * layer.in_features * layer.out_features
                    if branch.kind == "attention":
                        attention += 2 * sum(2 * WIDTH for _ in range(length) for _ in range(length)) / 2
        head += len({tuple(sorted(m.items())) for m in models}) * 2 * 8 * 50 * (length - 1)
    return linear, attention, head


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(LABELS, min_size=len(PATHS), max_size=len(PATHS)), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(2, 5),
    st.integers(0, 3),
)
def test_work_is_what_enumeration_counts(
    rows: list[list[str | None]], sequences: int, length: int, untaught: int
) -> None:
    candidates = [{p: v for p, v in zip(PATHS, row, strict=True) if v is not None} for row in rows]
    untaught = min(untaught, sequences)
    work = work_left(STRUCTURE, WIDTH, candidates, sequences=sequences, length=length, untaught=untaught)
    assert (work.linear, work.attention, work.head) == enumerated(candidates, sequences, length, untaught)
    alone = [
        work_left(STRUCTURE, WIDTH, [one], sequences=n, length=length)
        for n, models in ((sequences, candidates), (untaught, [{}]))
        for one in models
    ]
    assert work.apart == sum(one.blocks for one in alone)
    assert work.blocks <= work.apart


def test_the_share_left_is_of_the_blocks_work() -> None:
    first = {"blocks.0.up": "w3"}
    last = {"blocks.2.up": "w3"}
    work = work_left(STRUCTURE, WIDTH, [first, last, {}], sequences=1, length=4)
    assert work.left == pytest.approx((3 + 2 + 1 + 1) / 9)  # the dense model and `last` share two blocks
    assert Work().left == 1.0
    assert (work + work).total == (work * 2).total == 2 * work.total


def test_the_matrix_rate_is_that_of_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    rate, best = best_cpu_rate(torch.float32, 1)
    assert best == 1
    assert torch.get_num_threads() == threads
    monkeypatch.setattr("benchmarks.speed.floor.ENOUGH", 0.02)
    assert 0.1 < rate / matrix_rate(torch.device("cpu"), torch.float32) < 10
