"""Packing of rows of integer codes into 32-bit words, as in compressed-tensors' `pack-quantized` files (0.19 or newer).

Code i of a row starts at bit i * bits of the row and may continue in the next word. The lowest bit comes first. The
unused bits at the end of a row are zero. 32 codes of b bits fill b words, so a row whose codes fill its words has the
same bytes here and in the level database.

Shapes: O outputs, I inputs, W words in a row.

References:
    https://github.com/vllm-project/compressed-tensors (`pack_to_int32`, which the tests compare with).
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...spaces.levels.bits import pack, unpack

_CODES = 32


def to_words(codes_OI: Tensor, bits: int) -> Tensor:
    """Pack codes (O, I), uint8 in [0, 2^bits), into words (O, W), int32."""
    outputs, inputs = codes_OI.shape
    filled = pad(codes_OI, (0, -inputs % _CODES))
    words = pack(filled, bits).view(torch.int32).view(outputs, -1)
    return words[:, : word_count(inputs, bits)].contiguous()


def from_words(words_OW: Tensor, bits: int, inputs: int) -> Tensor:
    """Unpack words (O, W) of int32 to codes (O, I) of uint8; the reverse of `to_words`."""
    outputs, words = words_OW.shape
    filled = pad(words_OW, (0, -(-inputs // _CODES) * bits - words)).contiguous()
    codes = unpack(filled.view(torch.uint8).flatten(), bits, filled.numel() * _CODES // bits)
    return codes.view(outputs, -1)[:, :inputs]


def word_count(inputs: int, bits: int) -> int:
    """Return the number of words that a row of `inputs` codes takes."""
    return -(-inputs * bits // 32)
