"""llama.cpp's storage types against the package `gguf`, and its quantiser against what it is for."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.spaces.levels.builders import BuilderConfig, build
from paretopress.spaces.levels.ggml.ggml_encoding import GgmlEncoding
from paretopress.spaces.levels.ggml.ggml_types import GGML_TYPES
from paretopress.spaces.levels.ggml.ggml_values import decode
from paretopress.spaces.levels.labels import Scheme, parse_label, stored_bits
from paretopress.spaces.levels.layer_error import layer_error
from paretopress.spaces.levels.packed import Packed
from tests.spaces.levels.test_builders import random_layer

needs_llama_cpp = pytest.mark.skipif(
    find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"
)
RTN = BuilderConfig(quantizer="rtn")
TABLES = ("iq2_xxs", "iq2_xs", "iq2_s")
"""Those whose tables llama.cpp takes seconds to make."""
UNCALIBRATED = [label for label in GGML_TYPES if not label.startswith("iq2")]


@pytest.mark.parametrize("label", GGML_TYPES)
def test_types_are_those_of_llama_cpp(label: str) -> None:
    blocks = GGML_TYPES[label]
    kind = GGMLQuantizationType[blocks.name]
    assert (kind.value, GGML_QUANT_SIZES[kind]) == (blocks.number, (blocks.weights, blocks.bytes))
    assert parse_label(label) == Scheme(encoding=GgmlEncoding(blocks))
    assert stored_bits(parse_label(label), (3, 512)) == 3 * (512 // blocks.weights) * blocks.bytes * 8


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(GGML_TYPES)), st.integers(0, 2**32 - 1))
def test_any_bytes_stand_for_the_weights_that_llama_cpp_sees(label: str, seed: int) -> None:
    blocks = GGML_TYPES[label]
    stored = np.random.default_rng(seed).integers(0, 256, (4, 2 * blocks.bytes), dtype=np.uint8)
    meant = quants.dequantize(stored, GGMLQuantizationType(blocks.number))
    found = decode(blocks, torch.from_numpy(stored))
    assert found.shape == (4, 2 * blocks.weights)
    np.testing.assert_array_equal(found.numpy(), meant)


@needs_llama_cpp
@pytest.mark.parametrize(
    "label", [pytest.param(label, marks=[pytest.mark.slow] * (label in TABLES)) for label in GGML_TYPES]
)
def test_levels_take_their_bytes_and_come_close(label: str) -> None:
    weight, hessian = random_layer(7, 512, seed=1, correlated=False)
    level = build(weight, hessian, [label])[label]
    assert level.bits == stored_bits(parse_label(label), (7, 512))
    bits = level.bits / weight.numel()
    assert layer_error(weight, level.dense(), None) < 2.0 ** (1.2 - 1.6 * bits)
    assert level.dense().dtype == torch.float32


@needs_llama_cpp
@pytest.mark.parametrize("label", ["q2_k", "q3_k", "q4_k", "iq3_s", "iq4_xs", "q4_0"])
def test_inputs_that_matter_are_rounded_with_more_care(label: str) -> None:
    weight, _ = random_layer(16, 256, seed=2, correlated=False)
    hessian = torch.diag(torch.from_numpy(np.exp(2 * np.random.default_rng(3).standard_normal(256))).float())
    with_importance = build(weight, hessian, [label])[label].dense()
    without = build(weight, None, [label], config=RTN)[label].dense()
    assert layer_error(weight, with_importance, hessian) < 0.95 * layer_error(weight, without, hessian)


@needs_llama_cpp
@pytest.mark.parametrize("label", UNCALIBRATED)
def test_levels_depend_on_nothing_but_the_weight(label: str) -> None:
    weight, _ = random_layer(9, 256, seed=4, correlated=False)
    threads = torch.get_num_threads()
    found = []
    for number in (1, 3):
        torch.set_num_threads(number)
        found.append(build(weight, None, [label, "q8_0"], config=RTN)[label].tensors["blocks"])
    torch.set_num_threads(threads)
    assert torch.equal(*found)
    for row in range(9):
        alone = build(weight[row : row + 1], None, [label], config=RTN)[label].tensors["blocks"]
        assert torch.equal(alone[0], found[0][row])


@needs_llama_cpp
def test_importance_of_any_size_says_the_same() -> None:
    weight, hessian = random_layer(4, 256, seed=5, correlated=True)
    levels = [build(weight, hessian * scale, ["q3_k"])["q3_k"].tensors["blocks"] for scale in (1.0, 1e30)]
    assert torch.equal(*levels)


@needs_llama_cpp
@pytest.mark.parametrize("silent", [slice(0, 256), slice(None)], ids=["a block", "all"])
def test_inputs_that_were_silent_are_rounded_nonetheless(silent: slice) -> None:
    weight, hessian = random_layer(4, 512, seed=8, correlated=False)
    hessian[silent] = hessian[:, silent] = 0
    for label in ("q4_0", "q4_k", "q6_k", "iq4_xs"):
        level = build(weight, hessian, [label], config=RTN)[label].dense()
        assert layer_error(weight[:, :256], level[:, :256], None) < 0.02, label


@needs_llama_cpp
def test_types_that_need_importance_say_so() -> None:
    weight, _ = random_layer(4, 256, seed=6, correlated=False)
    with pytest.raises(
        ValueError, match=r"IQ2_XS only of layers whose inputs are calibrated; leave the level out"
    ):
        build(weight, None, ["iq2_xs"], config=RTN)


def test_rows_are_whole_blocks() -> None:
    weight, _ = random_layer(4, 128, seed=7, correlated=False)
    with pytest.raises(ValueError, match=r"level 'q4_k' needs a multiple of 256 inputs, the layer has 128"):
        build(weight, None, ["q4_k"], config=RTN)


def test_a_stored_level_is_decoded_alone() -> None:
    stored = torch.zeros((2, 2 * GGML_TYPES["q8_0"].bytes), dtype=torch.uint8)
    stored[:, :2] = torch.tensor([0.5], dtype=torch.float16).view(torch.uint8)
    stored[:, 2] = 4
    level = Packed("q8_0", (2, 64), {"blocks": stored})
    assert level.dense()[:, 0].tolist() == [2.0, 2.0]
    assert level.dense()[:, 1:].abs().max() == 0
    assert (level.mask(), level.dtype) == (None, torch.float32)
