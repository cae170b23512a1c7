"""Decoding of llama.cpp's storage types into float32 weights.

Values are computed in float32 with the operations of llama.cpp's own code in the same order, so they equal llama.cpp's
values bit for bit.

Shapes: O outputs, I inputs, R bytes of a row, N blocks, B bytes of a block, W weights of a block, G groups of weights
in a block that share a scale, K bytes of a part of a block, C fields of a byte.

References:
    llama.cpp, ggml/src/ggml-quants.c.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .ggml_types import Blocks


def decode(blocks: Blocks, stored_OR: Tensor) -> Tensor:
    """Decode rows of bytes (O, R) in the storage type `blocks` into weights (O, I) in float32."""
    stored_NB = stored_OR.reshape(-1, blocks.bytes)
    return _VALUES[blocks.name](stored_NB).reshape(len(stored_OR), -1)


def _half(stored_NB: Tensor, start: int) -> Tensor:
    """Return the 16-bit float that begins at a byte of each block, (N, 1) in float32."""
    return stored_NB[:, start : start + 2].contiguous().view(torch.float16).float()


def _bits(bytes_NK: Tensor, width: int, count: int) -> Tensor:
    """Return the lowest `count` fields of `width` bits of every byte, the lowest field first, (N, count, K)."""
    shifts = torch.arange(0, width * count, width, dtype=torch.uint8, device=bytes_NK.device)
    fields_NCK: Tensor = (bytes_NK[:, None, :] >> shifts[:, None]) & (2**width - 1)
    return fields_NCK


def _nibbles(bytes_NK: Tensor) -> Tensor:
    """Return the low four bits of all bytes, then the high four bits, (N, 2K)."""
    return _bits(bytes_NK, 4, 2).flatten(1)


def _in_groups(tensor_NW: Tensor, groups: int) -> Tensor:
    """Split the W values of each of the N blocks into `groups` groups of equal length, (N, G, W / G)."""
    return tensor_NW.reshape(len(tensor_NW), groups, -1)


def _q4_0(stored_NB: Tensor) -> Tensor:
    return _half(stored_NB, 0) * (_nibbles(stored_NB[:, 2:]).float() - 8)


def _q4_1(stored_NB: Tensor) -> Tensor:
    return _half(stored_NB, 0) * _nibbles(stored_NB[:, 4:]).float() + _half(stored_NB, 2)


def _fifth_bits(bytes_N4: Tensor) -> Tensor:
    """Return the fifth bit of 32 codes, as 16 where it is set and 0 elsewhere, (N, 32)."""
    return _bits(bytes_N4, 1, 8).transpose(1, 2).flatten(1) << 4


def _q5_0(stored_NB: Tensor) -> Tensor:
    codes_NW = _nibbles(stored_NB[:, 6:]) | _fifth_bits(stored_NB[:, 2:6])
    return _half(stored_NB, 0) * (codes_NW.float() - 16)


def _q5_1(stored_NB: Tensor) -> Tensor:
    codes_NW = _nibbles(stored_NB[:, 8:]) | _fifth_bits(stored_NB[:, 4:8])
    return _half(stored_NB, 0) * codes_NW.float() + _half(stored_NB, 2)


def _q8_0(stored_NB: Tensor) -> Tensor:
    return _half(stored_NB, 0) * stored_NB[:, 2:].contiguous().view(torch.int8).float()


def _halves(bytes_NK: Tensor, width: int, count: int) -> Tensor:
    """Return the fields of the first half of the bytes, then of the second, the lowest fields first, (N, count * K)."""
    return torch.cat([_bits(half, width, count).flatten(1) for half in bytes_NK.chunk(2, 1)], 1)


def _q2_k(stored_NB: Tensor) -> Tensor:
    scales_NG = stored_NB[:, :16]
    codes_NGW = _in_groups(_halves(stored_NB[:, 16:80], 2, 4), 16).float()
    slopes_NG = _half(stored_NB, 80) * (scales_NG & 15).float()
    minima_NG = _half(stored_NB, 82) * (scales_NG >> 4).float()
    return slopes_NG[:, :, None] * codes_NGW - minima_NG[:, :, None]


def _q3_k(stored_NB: Tensor) -> Tensor:
    low_NG = _nibbles(stored_NB[:, 96:104])
    high_NG = _bits(stored_NB[:, 104:108], 2, 4).flatten(1)
    scales_NG = (low_NG | (high_NG << 4)).float() - 32
    present_NW = _bits(stored_NB[:, :32], 1, 8).flatten(1)
    codes_NW = _halves(stored_NB[:, 32:96], 2, 4).float() - 4 * (1 - present_NW.float())
    return (_half(stored_NB, 108) * scales_NG)[:, :, None] * _in_groups(codes_NW, 16)


def _scales_and_minima(bytes_N12: Tensor) -> tuple[Tensor, Tensor]:
    """Unpack eight scales and eight minima of six bits each, both (N, 8)."""
    first, second, mixed = torch.split(bytes_N12, 4, 1)
    scales_NG = torch.cat([first & 63, (mixed & 15) | ((first >> 6) << 4)], 1)
    minima_NG = torch.cat([second & 63, (mixed >> 4) | ((second >> 6) << 4)], 1)
    return scales_NG.float(), minima_NG.float()


def _sloped(stored_NB: Tensor, codes_NW: Tensor) -> Tensor:
    """Compute the weights (N, 8, W / 8) of blocks that begin with a scale, a minimum and twelve bytes of factors."""
    scales_NG, minima_NG = _scales_and_minima(stored_NB[:, 4:16])
    slopes_NG, offsets_NG = _half(stored_NB, 0) * scales_NG, _half(stored_NB, 2) * minima_NG
    return slopes_NG[:, :, None] * _in_groups(codes_NW.float(), 8) - offsets_NG[:, :, None]


def _quarters(bytes_NK: Tensor) -> Tensor:
    """Return the low four bits of the first 32 bytes, then their high four bits, then the next 32 bytes, (N, 2K)."""
    return torch.cat([_nibbles(part) for part in torch.split(bytes_NK, 32, 1)], 1)


def _q4_k(stored_NB: Tensor) -> Tensor:
    return _sloped(stored_NB, _quarters(stored_NB[:, 16:]))


def _q5_k(stored_NB: Tensor) -> Tensor:
    fifth_NW = _bits(stored_NB[:, 16:48], 1, 8).flatten(1) << 4
    return _sloped(stored_NB, _quarters(stored_NB[:, 48:]) | fifth_NW)


def _q6_k(stored_NB: Tensor) -> Tensor:
    low_NW = torch.cat([_nibbles(part) for part in torch.split(stored_NB[:, :128], 64, 1)], 1)
    codes_NW = (low_NW | (_halves(stored_NB[:, 128:192], 2, 4) << 4)).float() - 32
    scales_NG = stored_NB[:, 192:208].contiguous().view(torch.int8).float()
    return (_half(stored_NB, 208) * scales_NG)[:, :, None] * _in_groups(codes_NW, 16)


_FOUR_BIT_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The values that the codes 0 to 15 of IQ4_NL and IQ4_XS stand for, before scaling."""


def _looked_up(codes: Tensor) -> Tensor:
    """Return the values of the codes of IQ4_NL and IQ4_XS in float32, before scaling."""
    return torch.tensor(_FOUR_BIT_LEVELS, dtype=torch.float32, device=codes.device)[codes.int()]


def _iq4_nl(stored_NB: Tensor) -> Tensor:
    return _half(stored_NB, 0) * _looked_up(_nibbles(stored_NB[:, 2:]))


def _iq4_xs(stored_NB: Tensor) -> Tensor:
    high_NG = _bits(stored_NB[:, 2:4], 2, 4).transpose(1, 2).flatten(1)
    low_NG = _bits(stored_NB[:, 4:8], 4, 2).transpose(1, 2).flatten(1)
    scales_NG = (low_NG | (high_NG << 4)).float() - 32
    codes_NW = torch.cat([_nibbles(part) for part in torch.split(stored_NB[:, 8:], 16, 1)], 1)
    return (_half(stored_NB, 0) * scales_NG)[:, :, None] * _in_groups(_looked_up(codes_NW), 8)


def _words(bytes_NK: Tensor, width: int) -> Tensor:
    """Read every `width` bytes as a little-endian integer, (N, K / width) in int64."""
    parts = bytes_NK.reshape(len(bytes_NK), -1, width).long()
    return (parts << torch.arange(0, 8 * width, 8, device=parts.device)).sum(-1)


def _signed(magnitudes_NGW: Tensor, signs_NG: Tensor) -> Tensor:
    """Give each eight magnitudes (N, G, 8) the signs of one byte (N, G); the lowest bit belongs to the first one."""
    bits = (signs_NG[..., None] >> torch.arange(8, device=signs_NG.device)) & 1
    return magnitudes_NGW * (1 - 2 * bits.float())


def _eighth_sign(signs: Tensor) -> Tensor:
    """Extend seven sign bits by an eighth that makes the number of minus signs even."""
    parity = signs ^ (signs >> 4)
    parity = parity ^ (parity >> 2)
    return signs | (((parity ^ (parity >> 1)) & 1) << 7)


def _packed_signs(words_NG: Tensor) -> Tensor:
    """Return the sign bytes (N, 4G) of 32-bit words that hold four times seven sign bits each."""
    shifts = torch.arange(0, 28, 7, device=words_NG.device)
    return _eighth_sign((words_NG[..., None] >> shifts) & 127).flatten(1)


def _scaled_groups(scales_NG: Tensor, values_N8: Tensor) -> Tensor:
    """Multiply the 256 values (N, 32, 8) of a block by G scales, one for each 256 / G of them, (N, G, 256 / G)."""
    return scales_NG[:, :, None] * values_N8.reshape(len(values_N8), scales_NG.shape[1], -1)


def _iq2_xxs(stored_NB: Tensor) -> Tensor:
    words_NGX = stored_NB[:, 2:].reshape(-1, 8, 2, 4)
    magnitudes = _grid("IQ2_XXS", stored_NB.device)[words_NGX[:, :, 0].flatten(1).long()]
    words_NG = _words(words_NGX[:, :, 1].flatten(1), 4)
    scales_NG = _half(stored_NB, 0) * (0.5 + (words_NG >> 28).float()) * 0.25
    return _scaled_groups(scales_NG, _signed(magnitudes, _packed_signs(words_NG)))


def _iq2_xs(stored_NB: Tensor) -> Tensor:
    words_NG = _words(stored_NB[:, 2:66], 2)
    magnitudes = _grid("IQ2_XS", stored_NB.device)[words_NG & 511]
    scales_NG = _bits(stored_NB[:, 66:74], 4, 2).transpose(1, 2).flatten(1).float()
    scales_NG = _half(stored_NB, 0) * (0.5 + scales_NG) * 0.25
    return _scaled_groups(scales_NG, _signed(magnitudes, _eighth_sign(words_NG >> 9)))


def _iq2_s(stored_NB: Tensor) -> Tensor:
    high_NG = _bits(stored_NB[:, 66:74], 2, 4).transpose(1, 2).flatten(1).long()
    magnitudes = _grid("IQ2_S", stored_NB.device)[stored_NB[:, 2:34].long() | (high_NG << 8)]
    scales_NG = _bits(stored_NB[:, 74:82], 4, 2).transpose(1, 2).flatten(1).float()
    scales_NG = _half(stored_NB, 0) * (0.5 + scales_NG) * 0.25
    return _scaled_groups(scales_NG, _signed(magnitudes, stored_NB[:, 34:66].long()))


def _iq3_xxs(stored_NB: Tensor) -> Tensor:
    magnitudes = _grid("IQ3_XXS", stored_NB.device)[stored_NB[:, 2:66].long()].reshape(-1, 32, 8)
    words_NG = _words(stored_NB[:, 66:98], 4)
    scales_NG = _half(stored_NB, 0) * (0.5 + (words_NG >> 28).float()) * 0.5
    return _scaled_groups(scales_NG, _signed(magnitudes, _packed_signs(words_NG)))


def _iq3_s(stored_NB: Tensor) -> Tensor:
    ninth_N64 = _bits(stored_NB[:, 66:74], 1, 8).transpose(1, 2).flatten(1).long()
    codes_N64 = stored_NB[:, 2:66].long() | (ninth_N64 << 8)
    magnitudes = _grid("IQ3_S", stored_NB.device)[codes_N64].reshape(-1, 32, 8)
    scales_NG = _bits(stored_NB[:, 106:110], 4, 2).transpose(1, 2).flatten(1).float()
    return _scaled_groups(
        _half(stored_NB, 0) * (1 + 2 * scales_NG), _signed(magnitudes, stored_NB[:, 74:106].long())
    )


_VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
"""Functions that decode blocks (N, B) into W weights each, by name of the storage type."""


@cache
def _grid(name: str, device: torch.device) -> Tensor:
    """Return the 4 or 8 magnitudes that each code of a type stands for, (codes, 4 or 8), from the package `gguf`.

    Raises:
        ModuleNotFoundError: the package `gguf` is not installed.
    """
    try:
        from gguf import quants
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"levels of llama.cpp's type {name} need the package gguf; install paretopress[gguf]", name="gguf"
        ) from error
    kind = getattr(quants, name)
    kind.init_grid()
    return torch.tensor(kind.grid, dtype=torch.float32, device=device).flatten(0, 2)
