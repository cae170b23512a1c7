"""Encodings: ways to store the weight of a layer that are neither zeros nor integers on a grid.

Encodings import torch only where they compute, because commands that only look at a run do without it.

Shapes: O outputs, I inputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Encoding(ABC):
    """A way to store the weight of a layer in tensors of its own.

    Encodings are compared by value, so subclasses are frozen data classes.
    """

    needs_hessian: ClassVar[bool] = False
    """Whether `encode` cannot do without a Hessian."""

    @property
    def multiple(self) -> int:
        """The number by which the number of inputs of a layer must be divisible."""
        return 1

    @abstractmethod
    def stored_bits(self, shape: tuple[int, int]) -> int:
        """Return the exact number of bits of all tensors of a layer with `shape` = (O, I)."""

    @abstractmethod
    def encode(
        self, weight_OI: "Tensor", hessian_II: "Tensor | None", dtype: "torch.dtype"
    ) -> "Mapping[str, Tensor]":
        """Compute the stored tensors of a layer, by name, on the weight's device.

        Args:
            weight_OI: weight of the layer in float32.
            hessian_II: sum or mean of x x^T over calibration inputs; None where none was computed.
            dtype: 16-bit type in which scales are stored if the encoding leaves their type open.
        """

    @abstractmethod
    def decode(self, tensors: "Mapping[str, Tensor]", shape: tuple[int, int]) -> "Tensor":
        """Compute the weight (O, I) in float32 from the stored tensors of a layer with `shape` = (O, I)."""

    def versions(self) -> dict[str, str]:
        """Return the versions, by package, of the packages whose code decides what `encode` computes.

        Raises:
            ModuleNotFoundError: a package is not installed.
        """
        return {}
