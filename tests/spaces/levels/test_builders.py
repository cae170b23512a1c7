"""Builders against the papers' definitions in plain float64 loops, and on the quickstart model's layers.

Shapes: O outputs, I inputs, K inputs of a group or block.
"""

import argparse
import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from paretopress.spaces.levels.builders import BuilderConfig, build, layer_error
from paretopress.spaces.levels.grids import QUANTIZERS
from paretopress.spaces.levels.labels import Grid, Pattern, Sparsity, kept, parse_label
from paretopress.spaces.levels.layer_error import layer_errors
from paretopress.spaces.levels.masks import PRUNERS
from paretopress.spaces.levels.packed import Packed

MODEL = Path(__file__).parents[3] / "configs" / "quickstart-model"
NOISE = 3e-5
"""How far apart float32 and float64 may drift, for weights of size one; decisions closer to a tie are not compared."""


def random_layer(outputs: int, inputs: int, seed: int, correlated: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the Hessian of inputs that are independent, or mixed and of very different sizes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * inputs, inputs))
    if correlated:
        x = (
            x
            @ (rng.standard_normal((inputs, inputs)) / math.sqrt(inputs))
            * np.exp(rng.standard_normal(inputs))
        )
    weight = torch.from_numpy(rng.standard_normal((outputs, inputs))).float()
    return weight, torch.from_numpy(x.T @ x).float()


class Reference:
    """Optimal brain surgeon, one column at a time, with the inverse Hessian eliminated explicitly.

    `clear` is false for the rows in which some rounding was close to a tie; `clear_mask` if no choice of a mask was.
    """

    def __init__(self, weight: torch.Tensor, hessian: torch.Tensor, damp: float) -> None:
        self.weight = weight.double().numpy().copy()
        h = hessian.double().numpy()
        self.hessian = h + damp * np.mean(np.diag(h)) * np.eye(len(h))
        self.outputs, self.inputs = self.weight.shape
        self.mask = np.ones(self.weight.shape, dtype=bool)
        self.codes = np.zeros(self.weight.shape)
        self.values = np.zeros(self.weight.shape)
        self.scales: list[np.ndarray] = []
        self.clear = np.ones(self.outputs, dtype=bool)
        self.clear_mask = True

    def run(self, grid: Grid | None, sparsity: Sparsity | None, block: int) -> "Reference":
        inverse = np.linalg.inv(self.hessian)
        group = (grid.group or self.inputs) if grid else 1
        period = sparsity.of if isinstance(sparsity, Pattern) else block
        for i in range(self.inputs):
            if sparsity is not None and i % period == 0:
                self.choose(sparsity, i, min(i + period, self.inputs))
            if grid is not None and i % group == 0:
                self.place(grid, i, min(i + group, self.inputs))
            column = self.weight[:, i]
            value = self.round(grid, i) if grid is not None else np.float16(column).astype(float)
            self.values[:, i] = np.where(self.mask[:, i], value, 0)
            error = (column - self.values[:, i]) / inverse[0, 0]
            self.weight[:, i:] -= np.outer(error, inverse[0])
            inverse = (inverse - np.outer(inverse[:, 0], inverse[0]) / inverse[0, 0])[1:, 1:]
        return self

    def choose(self, sparsity: Sparsity, start: int, stop: int) -> None:
        inverse_diagonal = [np.linalg.inv(self.hessian[j:, j:])[0, 0] for j in range(start, stop)]
        scores = np.abs(self.weight[:, start:stop]) / np.sqrt(inverse_diagonal)
        if isinstance(sparsity, Pattern):
            chosen = [scores[row] for row in range(self.outputs)]
            zeros = sparsity.of - sparsity.keep
        else:
            total = sparsity.zeros(self.weight.size)
            chosen = [scores.ravel()]
            zeros = total * stop // self.inputs - total * start // self.inputs
        for row, part in enumerate(chosen):
            order = np.sort(part)
            if 0 < zeros < len(order):
                self.clear_mask &= bool(
                    order[zeros] - order[zeros - 1] > NOISE / np.sqrt(min(inverse_diagonal))
                )
            keep = np.ones(len(part), dtype=bool)
            keep[np.argsort(part, kind="stable")[:zeros]] = False
            if isinstance(sparsity, Pattern):
                self.mask[row, start:stop] = keep
            else:
                self.mask[:, start:stop] = keep.reshape(scores.shape)

    def place(self, grid: Grid, start: int, stop: int) -> None:
        part = self.weight[:, start:stop] * self.mask[:, start:stop]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        steps = 2**grid.bits - 1
        scale = np.maximum(-low, high) / (steps / 2) if grid.symmetric else (high - low) / steps
        scale = np.maximum(scale, 2.0**-24)
        place = 2.0 ** (np.floor(np.log2(scale)) - 10)
        self.clear &= np.abs(scale / place % 1 - 0.5) * place > NOISE / (steps / 2)
        self.scale = np.float16(scale).astype(float)
        self.scales.append(self.scale)
        self.zero = np.full(self.outputs, 2.0 ** (grid.bits - 1))
        if not grid.symmetric:
            self.zero = np.round(-low / self.scale)
            self.clear &= np.abs(-low / self.scale % 1 - 0.5) * self.scale > NOISE

    def round(self, grid: Grid, i: int) -> np.ndarray:
        exact = self.weight[:, i] / self.scale
        inside = (exact + self.zero > -0.6) & (exact + self.zero < 2**grid.bits - 0.4)
        self.clear &= ~inside | ~self.mask[:, i] | (np.abs(exact % 1 - 0.5) * self.scale > NOISE)
        codes = np.clip(np.round(exact) + self.zero, 0, 2**grid.bits - 1)
        self.codes[:, i] = codes - (self.zero if grid.symmetric else 0)
        value: np.ndarray = np.float16((codes - self.zero) * self.scale).astype(float)
        return value


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["w2g8", "w3", "w4g16", "w3g24a", "w6g5", "w8g16a"]),
    st.integers(1, 40),
    st.integers(0, 2**32),
    st.booleans(),
    st.sampled_from([4, 7, 16, 128]),
)
def test_gptq_is_its_float64_loop(label: str, inputs: int, seed: int, correlated: bool, block: int) -> None:
    weight, hessian = random_layer(12, inputs, seed, correlated)
    config = BuilderConfig(scales="minmax", column_block=block)
    packed = build(weight, hessian, [label], config=config, dtype=torch.float16)[label]
    reference = Reference(weight, hessian, 0.01).run(parse_label(label).grid, None, block)
    rows = np.flatnonzero(reference.clear)
    assert np.array_equal(packed.codes().numpy()[rows], reference.codes[rows])
    assert np.array_equal(packed.tensors["scales"].numpy()[rows], np.stack(reference.scales, 1)[rows])
    assert np.array_equal(packed.dense().numpy()[rows], reference.values[rows])


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["s50", "s80", "s30+5", "2:4", "1:4", "4:8"]),
    st.integers(1, 5),
    st.integers(0, 2**32),
    st.booleans(),
    st.sampled_from([4, 7, 16, 128]),
)
def test_sparsegpt_is_its_float64_loop(
    label: str, eights: int, seed: int, correlated: bool, block: int
) -> None:
    weight, hessian = random_layer(6, 8 * eights, seed, correlated)
    config = BuilderConfig(column_block=block)
    packed = build(weight, hessian, [label], config=config)[label]
    reference = Reference(weight, hessian, 0.01).run(None, parse_label(label).sparsity, block)
    assume(reference.clear_mask)
    mask = packed.mask()
    assert mask is not None
    assert np.array_equal(mask.numpy(), reference.mask)
    np.testing.assert_allclose(packed.dense().numpy(), reference.values, rtol=2e-3, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["s50+w4g8", "2:4+w3g16", "4:8+w4", "1:4+w3g12a", "s60+w5g24"]),
    st.integers(1, 5),
    st.integers(0, 2**32),
    st.booleans(),
    st.sampled_from([7, 16, 128]),
)
def test_joint_levels_are_their_float64_loop(
    label: str, eights: int, seed: int, correlated: bool, block: int
) -> None:
    weight, hessian = random_layer(6, 8 * eights, seed, correlated)
    config = BuilderConfig(scales="minmax", column_block=block)
    packed = build(weight, hessian, [label], config=config)[label]
    scheme = parse_label(label)
    reference = Reference(weight, hessian, 0.01).run(scheme.grid, scheme.sparsity, block)
    pattern = isinstance(scheme.sparsity, Pattern)
    assume(reference.clear_mask and (pattern or reference.clear.all()))
    rows = np.flatnonzero(reference.clear)
    mask = packed.mask()
    assert mask is not None
    assert np.array_equal(mask.numpy()[rows], reference.mask[rows])
    assert np.array_equal(packed.dense().numpy()[rows], reference.values[rows])


def test_most_decisions_are_clear_of_ties() -> None:
    weight, hessian = random_layer(200, 32, 0, True)
    reference = Reference(weight, hessian, 0.01).run(Grid(4, 16, True), None, 128)
    assert reference.clear.mean() > 0.8


@pytest.mark.parametrize("pruner", ["sparsegpt", "wanda", "magnitude"])
@pytest.mark.parametrize("quantizer", ["gptq", "rtn"])
@settings(max_examples=15, deadline=None)
@given(
    sparse=st.sampled_from(["s37", "s50-3", "s99", "s0", "2:4", "4:8", "1:8"]),
    grid=st.sampled_from(["", "+w3g8", "+w3g24"]),
    shape=st.tuples(st.integers(1, 9), st.sampled_from([8, 24, 40, 56])),
    block=st.sampled_from([5, 16, 128]),
)
@example(sparse="s37", grid="+w3g24", shape=(3, 40), block=16)
def test_zeros_are_counted_exactly(
    pruner: str, quantizer: str, sparse: str, grid: str, shape: tuple[int, int], block: int
) -> None:
    weight, hessian = random_layer(*shape, 0, True)
    config = BuilderConfig.model_validate({"pruner": pruner, "quantizer": quantizer, "column_block": block})
    packed = build(weight, hessian, [sparse + grid], config=config)[sparse + grid]
    mask, scheme = packed.mask(), parse_label(sparse)
    assert mask is not None
    assert int(mask.sum()) == kept(scheme, weight.numel())
    assert not packed.dense()[~mask].any()
    if isinstance(scheme.sparsity, Pattern):
        assert bool((mask.view(-1, scheme.sparsity.of).sum(1) == scheme.sparsity.keep).all())


def test_wanda_and_magnitude_keep_the_largest() -> None:
    weight, hessian = random_layer(8, 16, 1, True)
    magnitude = build(weight, None, ["s50"], config=BuilderConfig(pruner="magnitude"))["s50"].mask()
    assert magnitude is not None
    assert float(weight[magnitude].abs().min()) >= float(weight[~magnitude].abs().max())
    wanda = build(weight, hessian, ["s50"], config=BuilderConfig(pruner="wanda"))["s50"].mask()
    assert wanda is not None
    for row, keep in zip(weight.abs() * hessian.diagonal().sqrt(), wanda, strict=True):
        assert int(keep.sum()) == 8
        assert float(row[keep].min()) >= float(row[~keep].max())


def test_sparsegpt_then_rounding_rounds_what_sparsegpt_left() -> None:
    weight, hessian = random_layer(8, 32, 8, True)
    config = BuilderConfig(quantizer="rtn")
    built = build(weight, hessian, ["2:4", "2:4+w5g8"], config=config)
    mask, rounded = built["2:4"].mask(), build(built["2:4"].dense(), None, ["w5g8"], config=config)["w5g8"]
    assert mask is not None
    assert torch.equal(built["2:4+w5g8"].dense(), torch.where(mask, rounded.dense(), 0))


LABELS = ["w2g16", "w4g16a", "s50", "2:4", "2:4+w4g16", "dense", "s60+w3"]


@pytest.mark.parametrize("label", LABELS)
def test_a_level_does_not_depend_on_the_others(label: str) -> None:
    weight, hessian = random_layer(16, 64, 2, True)
    before = weight.clone(), hessian.clone()
    alone, among = build(weight, hessian, [label])[label], build(weight, hessian, LABELS)[label]
    assert alone.tensors.keys() == among.tensors.keys()
    assert all(torch.equal(tensor, among.tensors[name]) for name, tensor in alone.tensors.items())
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


def test_columns_without_input_are_rounded_to_nearest_and_leave_the_rest_alone() -> None:
    weight, hessian = random_layer(8, 24, 3, True)
    dead = torch.zeros(24, dtype=torch.bool)
    dead[[0, 9, 23]] = True
    hessian[dead], hessian[:, dead] = 0, 0
    built = build(weight, hessian, ["w6g1", "s25"])
    assert float((built["w6g1"].dense()[:, dead] - weight[:, dead]).abs().max()) < 0.05
    mask = built["s25"].mask()
    assert mask is not None
    assert not mask[:, dead].any()
    live = hessian[~dead][:, ~dead]
    damp = 0.01 * float(hessian.diagonal().mean() / live.diagonal().mean())
    alone = build(weight[:, ~dead], live, ["w6g1"], config=BuilderConfig(damp=damp))["w6g1"]
    assert torch.equal(built["w6g1"].codes()[:, ~dead], alone.codes())


def test_a_singular_hessian_gets_more_damping_and_a_negative_one_is_refused() -> None:
    weight, _ = random_layer(4, 16, 4, False)
    ones = torch.ones(16, 16)
    tilted = ones - 0.05 * torch.eye(16)
    packed = build(weight, tilted, ["w4"], config=BuilderConfig(damp=1e-4))["w4"]
    same = build(weight, tilted, ["w4"], config=BuilderConfig(damp=0.1))["w4"]
    assert torch.equal(packed.codes(), same.codes())
    with pytest.raises(ValueError, match="use more calibration tokens or a larger damp"):
        build(weight, -ones, ["w4"])


def test_mse_scales_lose_less_than_minmax() -> None:
    weight, _ = random_layer(32, 128, 5, False)
    for label in ("w2g128", "w3g128a"):
        errors = []
        for scales in ("minmax", "mse"):
            config = BuilderConfig.model_validate({"quantizer": "rtn", "scales": scales})
            errors.append(
                layer_error(weight, build(weight, None, [label], config=config)[label].dense(), None)
            )
        assert errors[1] < errors[0]


@given(
    st.integers(1, 20),
    st.integers(1, 70),
    st.integers(0, 2**32),
    st.booleans(),
    st.sampled_from([1, 16, 1024]),
)
@settings(deadline=None)
def test_layer_error_is_its_definition(
    outputs: int, inputs: int, seed: int, correlated: bool, block: int
) -> None:
    weight, hessian = random_layer(outputs, inputs, seed, correlated)
    approximation = build(weight, hessian, ["w3g16"])["w3g16"].dense()
    w, h = weight.double(), hessian.double()
    e = w - approximation.double()
    expected = float(torch.trace(e @ h @ e.T) / torch.trace(w @ h @ w.T))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("paretopress.spaces.levels.layer_error._BLOCK", block)
        assert layer_error(weight, approximation, hessian) == pytest.approx(expected, rel=1e-6)
    assert layer_error(weight, approximation, None) == pytest.approx(
        float((e**2).sum() / (w**2).sum()), rel=1e-9
    )


def test_layer_error_is_exact_where_nearly_all_of_the_error_is_compensated() -> None:
    weight = torch.ones(4, 100)
    hessian = torch.ones(100, 100) + 3e-6 * torch.eye(100)
    error = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 50))).float()
    approximation = weight + torch.cat([error, -error], dim=1)
    e, w, h = approximation.double() - weight.double(), weight.double(), hessian.double()
    expected = float(torch.trace(e @ h @ e.T) / torch.trace(w @ h @ w.T))
    assert layer_error(weight, approximation, hessian) == pytest.approx(expected, rel=1e-6)


def test_layer_error_is_the_same_for_any_number_of_threads() -> None:
    weight, hessian = random_layer(1100, 192, 6, True)
    approximations = {"fine": weight.bfloat16(), "coarse": weight.round()}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = layer_errors(weight, approximations, hessian)
        torch.set_num_threads(2)
        two = layer_errors(weight, approximations, hessian)
    finally:
        torch.set_num_threads(threads)
    assert one == two
    assert one["coarse"] == layer_error(weight, approximations["coarse"], hessian)


@pytest.mark.gpu
def test_layer_error_is_the_same_on_a_gpu() -> None:
    weight, hessian = random_layer(300, 1100, 6, True)
    approximations = {"fine": weight.bfloat16(), "coarse": weight.round()}
    there = {name: approximation.cuda() for name, approximation in approximations.items()}
    for matrix in (hessian, None):
        here = layer_errors(weight, approximations, matrix)
        assert here == layer_errors(weight.cuda(), there, None if matrix is None else matrix.cuda())


def test_an_exact_layer_and_an_empty_one_have_no_error() -> None:
    weight, hessian = random_layer(3, 8, 7, False)
    assert layer_error(weight, weight, hessian) == 0.0
    assert layer_error(0 * weight, weight, 0 * hessian) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["w9"]}, "level 'w9' is unknown"),
        ({"labels": ["4:8"]}, "level '4:8' needs a multiple of 8 inputs, the layer has 12"),
        (
            {"hessian": None},
            "level 'w4' needs a Hessian with gptq and sparsegpt; pass one or use rtn and magnitude",
        ),
        ({"hessian": torch.eye(4)}, r"the Hessian has shape \(4, 4\); 12 inputs need a square of that"),
        ({"hessian": torch.full((12, 12), math.inf)}, "the Hessian is not finite"),
        (
            {"weight": torch.full((2, 12), 1e5)},
            r"the weight reaches 100000, beyond torch\.float16; load the model in",
        ),
        ({"weight": torch.full((2, 12), math.nan)}, "the weight reaches nan"),
        (
            {"weight": torch.ones(12)},
            r"the weight has shape \(12,\); a linear layer's is \(outputs, inputs\)",
        ),
        (
            {"dtype": torch.float64},
            "levels cannot be stored as torch.float64; use float16, bfloat16 or float32",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(arguments: dict[str, Any], message: str) -> None:
    case: dict[str, Any] = {"weight": torch.ones(2, 12), "hessian": torch.eye(12), "labels": ["w4"]}
    case |= {"dtype": torch.float32} | arguments
    with pytest.raises(ValueError, match=message):
        build(**case)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        BuilderConfig.model_validate({"dampening": 0.1})


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def layers() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Weights of blocks 0 and 5 of the quickstart model, with Hessians from a source of the standard library."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    tokens = torch.tensor(tokenizer.encode(inspect.getsource(argparse)[:9000]))[:1536].view(-1, 512)
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def gather(path: str, weight: torch.Tensor, x: torch.Tensor) -> None:
        x = x.flatten(0, 1)
        found[path] = (weight, x.T @ x)

    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and (".0." in path or ".5." in path):
            weight = module.weight.detach()
            module.register_forward_pre_hook(
                lambda _, inputs, path=path, weight=weight: gather(path, weight, inputs[0])
            )
    with torch.no_grad():
        model(tokens)
    return found


def errors_of(
    layers: dict[str, tuple[torch.Tensor, torch.Tensor]], labels: list[str], **settings: str
) -> dict[str, list[float]]:
    """Label to the error of each layer."""
    found: dict[str, list[float]] = {label: [] for label in labels}
    for weight, hessian in layers.values():
        config = BuilderConfig.model_validate(settings)
        built: dict[str, Packed] = build(weight, hessian, labels, config=config, dtype=torch.float16)
        errors = layer_errors(weight, {label: packed.dense() for label, packed in built.items()}, hessian)
        for label in labels:
            found[label].append(errors[label])
    return found


def test_gptq_beats_round_to_nearest_on_every_real_layer(
    layers: dict[str, tuple[torch.Tensor, torch.Tensor]],
) -> None:
    assert len(layers) == 14
    labels = ["w2g128", "w3g128", "w4g128a", "w6g32"]
    gptq, rtn = errors_of(layers, labels), errors_of(layers, labels, quantizer="rtn")
    for label in labels:
        assert all(g < r for g, r in zip(gptq[label], rtn[label], strict=True)), label


def test_sparsegpt_beats_wanda_and_magnitude_on_every_real_layer(
    layers: dict[str, tuple[torch.Tensor, torch.Tensor]],
) -> None:
    labels = ["s50", "s70", "2:4"]
    sparsegpt = errors_of(layers, labels)
    for pruner in ("wanda", "magnitude"):
        other = errors_of(layers, labels, pruner=pruner)
        for label in labels:
            assert all(s < o for s, o in zip(sparsegpt[label], other[label], strict=True)), (label, pruner)


def test_joint_solving_beats_one_after_the_other_on_real_layers(
    layers: dict[str, tuple[torch.Tensor, torch.Tensor]],
) -> None:
    labels = ["2:4+w3g128", "s50+w3g128"]
    joint, apart = errors_of(layers, labels), errors_of(layers, labels, quantizer="rtn")
    for label in labels:
        assert sum(joint[label]) < sum(apart[label])


def test_the_errors_of_a_fixed_mask_are_compensated(
    layers: dict[str, tuple[torch.Tensor, torch.Tensor]],
) -> None:
    label = "2:4+w4g128"
    joint = errors_of(layers, [label], pruner="magnitude")
    masked = errors_of(layers, ["2:4"], pruner="magnitude")
    assert sum(joint[label]) < 0.8 * sum(masked["2:4"])
    weight, hessian = next(iter(layers.values()))
    config = BuilderConfig(pruner="magnitude")
    built = build(weight, hessian, [label, "2:4"], config=config)
    assert torch.equal(built[label].tensors["mask"], built["2:4"].tensors["mask"])


@pytest.mark.parametrize(("field", "registry"), [("pruner", PRUNERS), ("quantizer", QUANTIZERS)])
def test_the_registries_hold_what_the_configuration_names(field: str, registry: dict[str, Any]) -> None:
    assert tuple(registry) == get_args(BuilderConfig.model_fields[field].annotation)
