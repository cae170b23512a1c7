"""What a level of one linear layer stores, and the weight it stands for.

Shapes: O outputs, I inputs, G groups of inputs in a row, S weights that survive a mask.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .bits import pack, unpack
from .ggml_values import decode
from .labels import Grid, Scheme, kept, parse_label


@dataclass(frozen=True, eq=False)
class Packed:
    """One linear layer's weight at one level, as stored.

    Attributes:
        label: the level; `spaces/levels/labels.py` says what it means.
        shape: outputs and inputs of the layer, (O, I).
        tensors: those of the following that the label needs.
            `codes`: dense bytes of the integers, in row-major order, of survivors only where there is a mask;
            symmetric codes are stored plus 2^(bits-1).
            `scales`, `zeros`: (O, G), 16-bit floats; zero points are whole numbers.
            `mask`: one bit per weight, 1 where the weight survives.
            `values`: 16-bit floats of the survivors in row-major order, when there are no codes.
            `blocks`: (O, bytes of a row), alone: llama.cpp's storage.
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
        """The type of `dense`: that of values or scales; float32 of llama.cpp's types, whose products have no other."""
        if "blocks" in self.tensors:
            return torch.float32
        return self.tensors["scales" if "scales" in self.tensors else "values"].dtype

    @property
    def bits(self) -> int:
        """Bits that the tensors take; `labels.stored_bits` plus the padding of the last byte of codes and mask."""
        return 8 * sum(t.numel() * t.element_size() for t in self.tensors.values())

    def map(self, function: Callable[[Tensor], Tensor]) -> "Packed":
        """The same with what the function gives for each tensor, its copy on a device for example."""
        return Packed(self.label, self.shape, {name: function(t) for name, t in self.tensors.items()})

    def mask(self) -> Tensor | None:
        """(O, I), true where a weight survives; None where nothing is masked."""
        if "mask" not in self.tensors:
            return None
        return (
            unpack(self.tensors["mask"], 1, self.shape[0] * self.shape[1]).view(torch.bool).view(self.shape)
        )

    def codes(self) -> Tensor:
        """The integers (O, I): int8 around zero when symmetric, else uint8; pruned weights have the code of 0.

        Raises:
            ValueError: the level has no integers.
        """
        grid = self._grid()
        codes, mask = self._stored_codes(grid), self.mask()
        if mask is None:
            return codes.view(self.shape)
        nothing = torch.zeros(self.shape, dtype=codes.dtype, device=codes.device)
        if not grid.symmetric:
            nothing = self._per_input("zeros").to(codes.dtype)
        return nothing.masked_scatter(mask, codes)

    def dense(self) -> Tensor:
        """The weight (O, I): (code - zero) * scale in float32, rounded once to `dtype`.

        Codes and zero points are whole numbers that 16-bit floats hold exactly, and products of such floats are
        formed in float32, so nothing wider need be stored on the way.
        """
        if self.scheme.blocks is not None:
            return decode(self.scheme.blocks, self.tensors["blocks"])
        mask = self.mask()
        if self.scheme.grid is None:
            values = self.tensors["values"]
            if mask is None:
                return values.view(self.shape).clone()
            return values.new_zeros(self.shape).masked_scatter(mask, values)
        whole = self._in_groups(self.codes())
        if "zeros" in self.tensors:
            whole = whole - self._by_group("zeros")
        return (whole * self._by_group("scales")).view(self.shape)

    def _grid(self) -> Grid:
        grid = self.scheme.grid
        if grid is None:
            raise ValueError(f"level {self.label!r} stores no integers; use `dense` for its values")
        return grid

    def _stored_codes(self, grid: Grid) -> Tensor:
        codes = unpack(self.tensors["codes"], grid.bits, kept(self.scheme, self.shape[0] * self.shape[1]))
        # Bytes wrap around, so that what is below 2^(bits-1) becomes negative.
        return codes.sub_(2 ** (grid.bits - 1)).view(torch.int8) if grid.symmetric else codes

    def _in_groups(self, codes_OI: Tensor) -> Tensor:
        """(O, G, K) where all groups are whole, else (O, I, 1)."""
        group = self._grid().group or self.shape[1]
        return codes_OI.view(self.shape[0], -1, 1 if self.shape[1] % group else group)

    def _by_group(self, name: str) -> Tensor:
        """A tensor of groups that fits `_in_groups`: (O, G, 1) or (O, I, 1)."""
        group = self._grid().group or self.shape[1]
        return (self._per_input(name) if self.shape[1] % group else self.tensors[name])[:, :, None]

    def _per_input(self, name: str) -> Tensor:
        """A tensor of groups (O, G), spread to (O, I)."""
        in_features = self.shape[1]
        group = self._grid().group or in_features
        return self.tensors[name][:, torch.arange(in_features, device=self.tensors[name].device) // group]


@dataclass(frozen=True, eq=False)
class Solution:
    """A compressed layer before it is packed.

    Attributes:
        stored: (O, I): codes, uint8 in [0, 2^bits), if there is a grid; else values in the storage type.
        mask: (O, I), true where a weight survives, or None.
        scales: (O, G), float32, or None.
        zeros: (O, G), float32, or None.
    """

    stored: Tensor
    mask: Tensor | None = None
    scales: Tensor | None = None
    zeros: Tensor | None = None


def pack_level(label: str, solution: Solution, dtype: torch.dtype) -> Packed:
    """Pack a compressed layer; `dtype` is the 16-bit type of values, scales and zero points."""
    stored, mask = solution.stored, solution.mask
    tensors: dict[str, Tensor] = {}
    if mask is not None:
        tensors["mask"] = pack(mask.to(torch.uint8), 1)
    survivors = stored.flatten() if mask is None else stored[mask]
    grid = parse_label(label).grid
    if grid is None:
        tensors["values"] = survivors.to(dtype, copy=True)
    else:
        tensors["codes"] = pack(survivors, grid.bits)
        floats = {"scales": solution.scales, "zeros": solution.zeros}
        tensors |= {name: t.to(dtype).contiguous() for name, t in floats.items() if t is not None}
    return Packed(label, (stored.shape[0], stored.shape[1]), tensors)
