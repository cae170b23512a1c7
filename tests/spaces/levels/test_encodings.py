"""The contract of encodings, and what an encoding need not say."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from paretopress.spaces.levels.encoding import Encoding
from paretopress.spaces.levels.encoding_registry import ENCODINGS
from paretopress.spaces.levels.labels import parse_label, stored_bits
from tests.spaces.levels.test_ggml import needs_llama_cpp


@dataclass(frozen=True)
class Whole(Encoding):
    """Weights as they are, in 32 bits."""

    def stored_bits(self, shape: tuple[int, int]) -> int:
        return 32 * shape[0] * shape[1]

    def encode(
        self, weight_OI: Tensor, hessian_II: Tensor | None, dtype: torch.dtype
    ) -> Mapping[str, Tensor]:
        return {"whole": weight_OI}

    def decode(self, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        return tensors["whole"].view(shape)


def test_an_encoding_that_says_no_more_takes_any_shape_and_needs_nothing() -> None:
    assert (Whole().multiple, Whole().needs_hessian, Whole().versions()) == (1, False, {})
    assert Whole() == Whole()


@needs_llama_cpp
@pytest.mark.parametrize("label", ["q4_0", "q6_k", "iq4_nl"])
def test_an_encoding_keeps_its_promises(label: str) -> None:
    encoding = ENCODINGS[label]
    assert parse_label(label).encoding is encoding
    shape = (3, 2 * encoding.multiple)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = weight.clone()
    tensors = encoding.encode(weight, None, torch.float16)
    assert torch.equal(weight, before)
    assert 8 * sum(t.numel() * t.element_size() for t in tensors.values()) == encoding.stored_bits(shape)
    assert encoding.stored_bits(shape) == stored_bits(parse_label(label), shape)
    decoded = encoding.decode(tensors, shape)
    assert (decoded.shape, decoded.dtype) == (weight.shape, torch.float32)
    assert float((decoded - weight).norm() / weight.norm()) < 0.15
    again = encoding.encode(weight, None, torch.float16)
    assert all(torch.equal(tensor, again[name]) for name, tensor in tensors.items())
    assert all(encoding.versions().values())
