"""Packing of small integers into bytes: eight codes of b bits take b bytes, the first code in the lowest bits.

Eight codes of one byte each are read as one 64-bit word. Packing closes the gaps between the codes in three steps, each
of which moves the upper field of every pair of fields down to the lower one. The fields hold one code in the first
step, two in the second, four in the third. Unpacking reverses the steps. The byte order is little-endian.

Shapes: W words, B bits.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

_AT_ONCE = {"cpu": 1 << 15, "cuda": 1 << 24}
"""Number of words that are packed at once, by device type: on a CPU as many as its caches hold."""


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack integers into bytes.

    Args:
        codes: uint8 codes in [0, 2^bits), a tensor of any shape that is read in row-major order.
        bits: number of bits of a code, 1 to 8.

    Returns:
        uint8 tensor of ceil(numel * bits / 8) bytes; the last byte is filled up with zero bits.
    """
    flat = codes.flatten()
    spread = pad(flat, (0, -len(flat) % 8)).view(torch.int64)
    packed = torch.empty((len(spread), bits), dtype=torch.uint8, device=codes.device)
    at_once = _AT_ONCE[codes.device.type]
    for bytes_WB, words_W in zip(torch.split(packed, at_once), torch.split(spread, at_once), strict=True):
        for shift, lower in _moves(bits):
            words_W = words_W.sub((words_W >> shift).bitwise_and_(lower), alpha=(1 << shift) - 1)
        bytes_WB.copy_(words_W.view(torch.uint8).view(-1, 8)[:, :bits])
    return packed.flatten()[: -(-len(flat) * bits // 8)].clone()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Unpack the first `count` codes that `pack` has packed, as a flat uint8 tensor."""
    filled = pad(packed, (0, -len(packed) % bits)).view(-1, bits)
    spread = torch.zeros(len(filled), dtype=torch.int64, device=packed.device)
    at_once = _AT_ONCE[packed.device.type]
    for bytes_WB, words_W in zip(torch.split(filled, at_once), torch.split(spread, at_once), strict=True):
        words_W.view(torch.uint8).view(-1, 8)[:, :bits].copy_(bytes_WB)
        for shift, lower in reversed(_moves(bits)):
            words_W.add_(words_W & lower, alpha=(1 << shift) - 1)
    return spread.view(torch.uint8)[:count]


def _moves(bits: int) -> list[tuple[int, int]]:
    """Return for each step the number of bits by which upper fields move down, and the mask of their new places."""
    if bits == 8:
        return []
    moves = []
    for codes in (1, 2, 4):
        field = ((1 << codes * bits) - 1) << codes * bits
        moves.append((codes * (8 - bits), sum(field << lane for lane in range(0, 64, 16 * codes))))
    return moves
