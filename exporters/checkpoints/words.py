"""Rows of small integers in 32-bit words, as compressed-tensors' `pack-quantized` files have them (0.19 or newer).

Code i of a row has the bits from i * bits on, little end first, also across words; a row ends with zero bits. 32
codes of b bits fill b words, so that rows of whole words are the level database's own bytes.

Shapes: O outputs, I inputs, W words of a row.

References:
    https://github.com/vllm-project/compressed-tensors (`pack_to_int32`, which the tests compare with).
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...spaces.levels.bits import pack, unpack

_CODES = 32


def to_words(codes_OI: Tensor, bits: int) -> Tensor:
    """Codes, uint8 in [0, 2^bits), as words_OW of int32."""
    outputs, inputs = codes_OI.shape
    filled = pad(codes_OI, (0, -inputs % _CODES))
    words = pack(filled, bits).view(torch.int32).view(outputs, -1)
    return words[:, : word_count(inputs, bits)].contiguous()


def from_words(words_OW: Tensor, bits: int, inputs: int) -> Tensor:
    """The reverse of `to_words`: codes_OI as uint8."""
    outputs, words = words_OW.shape
    filled = pad(words_OW, (0, -(-inputs // _CODES) * bits - words)).contiguous()
    codes = unpack(filled.view(torch.uint8).flatten(), bits, filled.numel() * _CODES // bits)
    return codes.view(outputs, -1)[:, :inputs]


def word_count(inputs: int, bits: int) -> int:
    """Words of a row of `inputs` codes."""
    return -(-inputs * bits // 32)
