"""A checkpoint that reads as the model of an assignment: what an export of it would hold, with nothing written."""

import torch
from torch import Tensor

from ..spaces.model.checkpoint import Checkpoint
from .artifact.compression import Compression


class ProfiledCheckpoint(Checkpoint):
    """The source's names, types and blocks, with the weights of `compression`.

    Dropped branches have zeros in their linear layers and biases, whole dropped blocks too: they add exactly nothing
    to what passes, and generating with a cache, which counts on every block, works as it is.

    Args:
        source: the dense model.
        compression: its levels and dropped branches.
        trust_remote_code: allow Python code that comes with the checkpoint.
    """

    def __init__(self, source: Checkpoint, compression: Compression, trust_remote_code: bool = False) -> None:
        super().__init__(source.path, trust_remote_code)
        self._compression = compression
        self._silent = {
            linear.path
            for index, kinds in compression.dropped.items()
            for branch in compression.structure.blocks[index].branches
            if branch.kind in kinds
            for linear in branch.linears
        }

    def tensor(self, name: str) -> Tensor:
        """A tensor by the model's name, in the stored type and layout."""
        layer, _, leaf = name.rpartition(".")
        original = super().tensor(name)
        if layer in self._silent:
            return torch.zeros_like(original)
        weight = self._compression.weight(layer) if leaf == "weight" else None
        if weight is None:
            return original
        return self._compression.linears[layer].turn(weight.cpu()).to(original.dtype)
