"""The storage of one linear layer at one level, and the weight that is computed from it.

Shapes: O outputs, I inputs, G groups of inputs in a row, K inputs of a group.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .bits import pack, unpack
from .labels import Grid, Scheme, kept, parse_label


@dataclass(frozen=True, eq=False)
class Packed:
    """The weight of one linear layer at one level, in the form in which it is stored.

    Attributes:
        label: label of the level; `spaces/levels/labels.py` says what it means.
        shape: numbers of outputs and inputs of the layer, (O, I).
        tensors: stored tensors by name; only those of the following that the label needs.
            `codes`: integers of the weights in row-major order, packed into bytes; pruned weights have no code. A code
            of a symmetric grid is stored with 2^(bits-1) added to it.
            `scales`, `zeros`: scales and zero points of the groups (O, G), 16-bit floats; zero points are whole numbers.
            `mask`: one bit per weight, packed into bytes, 1 where the weight survives.
            `values`: 16-bit floats of the surviving weights in row-major order, if the level has no codes.
            An encoding (`encoding.py`) has tensors of its own.
    """

    label: str
    shape: tuple[int, int]
    tensors: Mapping[str, Tensor]

    @property
    def scheme(self) -> Scheme:
        """The scheme that the label names."""
        return parse_label(self.label)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weight that `dense` returns.

        It is the type of the stored values or scales, or float32 for encodings.
        """
        if self.scheme.encoding:
            return torch.float32
        return self.tensors["scales" if "scales" in self.tensors else "values"].dtype

    @property
    def bits(self) -> int:
        """The bits that the tensors take: `labels.stored_bits`, plus what fills up the last byte of codes and mask."""
        return 8 * sum(t.numel() * t.element_size() for t in self.tensors.values())

    def map(self, function: Callable[[Tensor], Tensor]) -> "Packed":
        """Return the level with every tensor replaced by the function's result, for example its copy on a device."""
        return Packed(self.label, self.shape, {name: function(t) for name, t in self.tensors.items()})

    def mask(self) -> Tensor | None:
        """Return the mask (O, I), true where a weight survives, or None if the level has no mask."""
        if "mask" not in self.tensors:
            return None
        return (
            unpack(self.tensors["mask"], 1, self.shape[0] * self.shape[1]).view(torch.bool).view(self.shape)
        )

    def codes(self) -> Tensor:
        """Return the integer codes (O, I); a pruned weight has the code that stands for 0.

        Codes of a symmetric grid are int8 around zero, those of an asymmetric grid uint8.

        Raises:
            ValueError: the level stores no integers.
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
        """Compute the weight (O, I) that the level stands for.

        A quantised weight is (code - zero) * scale, rounded once to `dtype`. 16-bit floats hold codes and zero points
        exactly, and PyTorch computes their products in float32, so no wider copy is needed.
        """
        if self.scheme.encoding is not None:
            return self.scheme.encoding.decode(self.tensors, self.shape)
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
        """Return the grid of the level, or refuse a level without one."""
        grid = self.scheme.grid
        if grid is None:
            raise ValueError(f"level {self.label!r} stores no integers; use `dense` for its values")
        return grid

    def _stored_codes(self, grid: Grid) -> Tensor:
        """Unpack the codes of the surviving weights, in row-major order."""
        codes = unpack(self.tensors["codes"], grid.bits, kept(self.scheme, self.shape[0] * self.shape[1]))
        # Bytes wrap around, so a stored code below 2^(bits-1) becomes negative as int8.
        return codes.sub_(2 ** (grid.bits - 1)).view(torch.int8) if grid.symmetric else codes

    def _in_groups(self, codes_OI: Tensor) -> Tensor:
        """Return the codes by group, (O, G, K); if the last group is shorter, each code by itself, (O, I, 1)."""
        group = self._grid().group or self.shape[1]
        return codes_OI.view(self.shape[0], -1, 1 if self.shape[1] % group else group)

    def _by_group(self, name: str) -> Tensor:
        """Return the scales or zero points in a shape that fits `_in_groups`: (O, G, 1) or (O, I, 1)."""
        group = self._grid().group or self.shape[1]
        return (self._per_input(name) if self.shape[1] % group else self.tensors[name])[:, :, None]

    def _per_input(self, name: str) -> Tensor:
        """Return the scales or zero points with one entry for every weight, (O, I)."""
        in_features = self.shape[1]
        group = self._grid().group or in_features
        return self.tensors[name][:, torch.arange(in_features, device=self.tensors[name].device) // group]


@dataclass(frozen=True, eq=False)
class Solution:
    """A compressed layer before it is packed.

    Attributes:
        stored: codes (O, I), uint8 in [0, 2^bits), if the level has a grid; else values (O, I) in the storage type.
        mask: mask (O, I) that is true where a weight survives; None if no weight is pruned.
        scales: scales (O, G) of the groups in float32; None without a grid.
        zeros: zero points (O, G) of the groups in float32; None without a grid or if the grid is symmetric.
    """

    stored: Tensor
    mask: Tensor | None = None
    scales: Tensor | None = None
    zeros: Tensor | None = None


def pack_level(label: str, solution: Solution, dtype: torch.dtype) -> Packed:
    """Pack a compressed layer.

    Args:
        label: label of the level that was built.
        solution: codes or values of the layer, with mask, scales and zero points.
        dtype: 16-bit type in which values, scales and zero points are stored.
    """
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
