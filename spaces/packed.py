"""What a level of one linear layer stores, and the weight it stands for.

Shapes: O outputs, I inputs, G groups of inputs in a row, S weights that survive a mask.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .labels import Grid, Scheme, kept, parse_label


def pack(codes: Tensor, bits: int) -> Tensor:
    """Integers as dense bytes: eight codes become `bits` bytes, little end first.

    Args:
        codes: any shape, read in row-major order; each in [0, 2^bits).
        bits: 1 to 8.

    Returns:
        uint8 of ceil(numel * bits / 8) bytes; the last one is padded with zero bits.
    """
    flat = codes.flatten()
    eights = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    words = torch.zeros(len(eights), dtype=torch.int64, device=codes.device)
    for k in range(8):
        words |= eights[:, k].to(torch.int64) << (bits * k)
    parts = [((words >> (8 * k)) & 255).to(torch.uint8) for k in range(bits)]
    return torch.stack(parts, dim=1).flatten()[: -(-flat.numel() * bits // 8)].clone()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The reverse of `pack`: the first `count` codes, flat, as uint8."""
    groups = torch.nn.functional.pad(packed, (0, -packed.numel() % bits)).view(-1, bits)
    words = torch.zeros(len(groups), dtype=torch.int64, device=packed.device)
    for k in range(bits):
        words |= groups[:, k].to(torch.int64) << (8 * k)
    codes = [((words >> (bits * k)) & (2**bits - 1)).to(torch.uint8) for k in range(8)]
    return torch.stack(codes, dim=1).flatten()[:count]


@dataclass(frozen=True, eq=False)
class Packed:
    """One linear layer's weight at one level, as stored.

    Attributes:
        label: the level; `spaces/labels.py` says what it means.
        shape: (O, I).
        tensors: those of the following that the label needs.
            `codes`: dense bytes of the integers, in row-major order, of survivors only where there is a mask;
            symmetric codes are stored plus 2^(bits-1).
            `scales`, `zeros`: (O, G), 16-bit floats; zero points are whole numbers.
            `mask`: one bit per weight, 1 where the weight survives.
            `values`: 16-bit floats of the survivors in row-major order, when there are no codes.
    """

    label: str
    shape: tuple[int, int]
    tensors: Mapping[str, Tensor]

    @property
    def scheme(self) -> Scheme:
        """What the label says."""
        return parse_label(self.label)

    @property
    def dtype(self) -> torch.dtype:
        """The 16-bit type of values and scales, and of `dense`."""
        return self.tensors["scales" if "scales" in self.tensors else "values"].dtype

    @property
    def bits(self) -> int:
        """Bits that the tensors take; `labels.stored_bits` plus the padding of the last byte of codes and mask."""
        return 8 * sum(t.numel() * t.element_size() for t in self.tensors.values())

    def to(self, device: torch.device | str) -> "Packed":
        """The same on `device`."""
        return Packed(self.label, self.shape, {k: t.to(device) for k, t in self.tensors.items()})

    def mask(self) -> Tensor | None:
        """(O, I), true where a weight survives; None where nothing is masked."""
        if "mask" not in self.tensors:
            return None
        return unpack(self.tensors["mask"], 1, self.shape[0] * self.shape[1]).bool().view(self.shape)

    def codes(self) -> Tensor:
        """The integers (O, I): int8 around zero when symmetric, else uint8; pruned weights have the code of 0.

        Raises:
            ValueError: the level has no integers.
        """
        grid = self._grid()
        numel = self.shape[0] * self.shape[1]
        codes = unpack(self.tensors["codes"], grid.bits, kept(self.scheme, numel))
        if grid.symmetric:
            codes = (codes.to(torch.int16) - 2 ** (grid.bits - 1)).to(torch.int8)
        mask = self.mask()
        if mask is None:
            return codes.view(self.shape)
        nothing = torch.zeros(self.shape, dtype=codes.dtype, device=codes.device)
        if not grid.symmetric:
            nothing = self._per_input("zeros").to(codes.dtype)
        return nothing.masked_scatter(mask, codes)

    def dense(self) -> Tensor:
        """The weight (O, I): (code - zero) * scale in float32, rounded once to `dtype`."""
        if self.scheme.grid is None:
            values, mask = self.tensors["values"], self.mask()
            if mask is None:
                return values.view(self.shape).clone()
            return values.new_zeros(self.shape).masked_scatter(mask, values)
        codes = self.codes().float()
        if "zeros" in self.tensors:
            codes -= self._per_input("zeros").float()
        return (codes * self._per_input("scales").float()).to(self.dtype)

    def _grid(self) -> Grid:
        grid = self.scheme.grid
        if grid is None:
            raise ValueError(f"level {self.label!r} stores no integers; use `dense` for its values")
        return grid

    def _per_input(self, name: str) -> Tensor:
        """A tensor of groups (O, G), spread to (O, I)."""
        in_features = self.shape[1]
        group = self._grid().group or in_features
        return self.tensors[name][:, torch.arange(in_features, device=self.tensors[name].device) // group]


def pack_level(
    label: str,
    stored: Tensor,
    dtype: torch.dtype,
    *,
    mask: Tensor | None = None,
    scales: Tensor | None = None,
    zeros: Tensor | None = None,
) -> Packed:
    """Pack a compressed layer.

    Args:
        label: what it is.
        stored: (O, I), the codes, uint8 in [0, 2^bits), if the label has a grid; else the values.
        dtype: 16-bit type of values, scales and zero points.
        mask: (O, I), true where a weight survives.
        scales: (O, G).
        zeros: (O, G).
    """
    tensors: dict[str, Tensor] = {}
    if mask is not None:
        tensors["mask"] = pack(mask.to(torch.uint8), 1)
    survivors = stored.flatten() if mask is None else stored[mask]
    grid = parse_label(label).grid
    if grid is None:
        tensors["values"] = survivors.to(dtype, copy=True)
    else:
        tensors["codes"] = pack(survivors, grid.bits)
        floats = {"scales": scales, "zeros": zeros}
        tensors |= {name: t.to(dtype).contiguous() for name, t in floats.items() if t is not None}
    return Packed(label, (stored.shape[0], stored.shape[1]), tensors)
