"""The storage types of llama.cpp as encodings of levels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..encoding import Encoding
from .ggml_types import GGML_TYPES, Blocks

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class GgmlEncoding(Encoding):
    """A layer in a storage type of llama.cpp, built by llama.cpp's quantiser.

    The only tensor is `blocks`, the rows (O, bytes of a row) in uint8. The diagonal of the Hessian serves as the
    importance of the inputs.

    Attributes:
        blocks: storage type of llama.cpp.
    """

    blocks: Blocks

    @property
    def multiple(self) -> int:
        """The number of weights in a block."""
        return self.blocks.weights

    def stored_bits(self, shape: tuple[int, int]) -> int:
        """Return the number of bits of all rows."""
        return 8 * shape[0] * self.blocks.row_bytes(shape[1])

    def encode(
        self, weight_OI: "Tensor", hessian_II: "Tensor | None", dtype: "torch.dtype"
    ) -> "Mapping[str, Tensor]":
        """Quantise the weight with llama.cpp's quantiser, which stores scales in types of its own."""
        from .ggml_quantizer import quantize

        del dtype
        importance_I = None if hessian_II is None else hessian_II.diagonal()
        return {"blocks": quantize(weight_OI, self.blocks, importance_I)}

    def decode(self, tensors: "Mapping[str, Tensor]", shape: tuple[int, int]) -> "Tensor":
        """Compute the weight as llama.cpp does, bit for bit."""
        from .ggml_values import decode

        del shape
        return decode(self.blocks, tensors["blocks"])

    def versions(self) -> dict[str, str]:
        """Return the version of llama-cpp-python."""
        from .ggml_quantizer import version

        return {"llama-cpp-python": version()}


GGML_ENCODINGS = {label: GgmlEncoding(blocks) for label, blocks in GGML_TYPES.items()}
"""Encodings by label."""
