"""A checkpoint that is read as the compressed model of an assignment, without an export on the disk."""

import torch
from torch import Tensor

from ..spaces.model.checkpoint import Checkpoint
from .artifact.compression import Compression


class ProfiledCheckpoint(Checkpoint):
    """A checkpoint with the names, types and blocks of its source and with the weights of the assigned levels.

    Dropped branches have zeros in the weights and biases of their linear layers, in dropped blocks too. So they add
    exactly zero to the residual stream, and generation works, whose cache needs an entry for every block.

    Args:
        source: checkpoint of the dense model.
        compression: levels and dropped branches of the model.
        trust_remote_code: whether to run Python code that comes with the checkpoint.
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
        """Return a tensor of the compressed model by its name, in the stored type and layout."""
        layer, _, leaf = name.rpartition(".")
        original = super().tensor(name)
        if layer in self._silent:
            return torch.zeros_like(original)
        weight = self._compression.weight(layer) if leaf == "weight" else None
        if weight is None:
            return original
        return self._compression.linears[layer].turn(weight.cpu()).to(original.dtype)
