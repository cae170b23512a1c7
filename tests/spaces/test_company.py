"""A level's bits do not depend on its company: other labels, other layers, recorded kernels."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.speed.levels import OneByOne
from paretopress.spaces.levels.builders import BuilderConfig, build, build_layers
from paretopress.spaces.levels.cuda_graphs import Replays
from paretopress.spaces.levels.packed import Packed
from tests.spaces.levels.test_builders import random_layer

GRIDS = ("w2g8", "w3g8", "w6g8", "w8g8", "w3g8a", "w5g8a", "w4g24", "w4", "w5a", "w3g5", "w2g100")
MASKS = ("s30", "s50", "s80-3", "2:4", "1:4", "4:8")
LABELS = (*GRIDS, *MASKS, *(f"{mask}+{grid}" for mask, grid in product(MASKS[1:], GRIDS[::2])), "dense")


def same(some: Packed, others: Packed) -> bool:
    return some.tensors.keys() == others.tensors.keys() and all(
        torch.equal(tensor, others.tensors[name]) for name, tensor in some.tensors.items()
    )


def settings_of(pruner: str, quantizer: str, scales: str, block: int) -> BuilderConfig:
    return BuilderConfig.model_validate(
        {"pruner": pruner, "quantizer": quantizer, "scales": scales, "column_block": block}
    )


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.sampled_from(LABELS), min_size=2, max_size=7, unique=True),
    shape=st.tuples(st.integers(1, 37), st.sampled_from([8, 24, 40, 72])),
    others=st.lists(st.integers(1, 21), max_size=2),
    block=st.sampled_from([5, 16, 128]),
    scales=st.sampled_from(["minmax", "mse"]),
    pruner=st.sampled_from(["sparsegpt", "sparsegpt", "wanda"]),
    seed=st.integers(0, 2**32),
)
def test_labels_and_layers_side_by_side_are_those_alone(
    labels: list[str],
    shape: tuple[int, int],
    others: list[int],
    block: int,
    scales: str,
    pruner: str,
    seed: int,
) -> None:
    weight, hessian = random_layer(*shape, seed, True)
    config = settings_of(pruner, "gptq", scales, block)
    weights = {"first": weight} | {
        f"other {rows}": random_layer(rows, shape[1], seed + rows, False)[0] for rows in others
    }
    wanted = dict.fromkeys(weights, labels) | {"first": labels[::-1]}
    among = build_layers(weights, hessian, wanted, config=config, dtype=torch.bfloat16)
    assert list(among["first"]) == labels[::-1]
    for layer, label in [("first", label) for label in labels] + [(name, labels[0]) for name in weights]:
        alone = build(weights[layer], hessian, [label], config=config, dtype=torch.bfloat16)[label]
        assert same(alone, among[layer][label]), (layer, label)


def test_walks_that_are_too_wide_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = random_layer(12, 40, 0, True)
    labels = ["w2g8", "w3g8", "w4g8", "s50"]
    whole = build(weight, hessian, labels)
    monkeypatch.setattr("paretopress.spaces.levels.solver._TOGETHER", 2 * weight.numel())
    split = build(weight, hessian, labels)
    assert list(split) == labels
    assert all(same(whole[label], split[label]) for label in labels)


@pytest.mark.gpu
@pytest.mark.parametrize("scales", ["minmax", "mse"])
@pytest.mark.parametrize(("outputs", "inputs", "block"), [(768, 512, 128), (1000, 520, 64)])
def test_recorded_launched_together_and_alone_are_the_same_on_a_gpu(
    scales: str, outputs: int, inputs: int, block: int
) -> None:
    labels = [
        "w2g128",
        "w3g128",
        "w4g128",
        "w5g128a",
        "w6",
        "s30",
        "s60",
        "2:4",
        "4:8",
        "2:4+w4g128",
        "s50+w3g64",
    ]
    weights = {f"layer {rows}": random_layer(rows, inputs, rows, False)[0].cuda() for rows in (outputs, 96)}
    hessian = random_layer(1, inputs, 0, True)[1].cuda()
    config = settings_of("sparsegpt", "gptq", scales, block)
    wanted = dict.fromkeys(weights, labels)
    replays = Replays()
    built = [
        build_layers(weights, hessian, wanted, config=config, dtype=torch.bfloat16, replays=how)
        for how in (replays, replays, OneByOne())
    ]
    for layer, label in product(weights, labels):
        alone = build(weights[layer], hessian, [label], config=config, dtype=torch.bfloat16)[label]
        for among in built:
            assert same(alone, among[layer][label]), (layer, label)


@pytest.mark.gpu
def test_gpu_and_cpu_agree_where_no_rounding_is_close() -> None:
    weight, hessian = random_layer(256, 256, 3, False)
    for label in ("w4g64", "s50", "2:4+w4g64"):
        here = build(weight, hessian, [label], dtype=torch.bfloat16)[label].dense()
        there = build(weight.cuda(), hessian.cuda(), [label], dtype=torch.bfloat16)[label].dense().cpu()
        assert float((here == there).float().mean()) > 0.98, label
