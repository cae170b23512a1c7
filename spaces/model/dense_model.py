"""A model opened once: its files, its modules without weights, and the structure found in them."""

from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from transformers import PreTrainedModel

from .checkpoint import Checkpoint
from .structure import Structure, find_structure


class DenseModel:
    """A checkpoint with its structure, to be handed around in place of opening it again.

    Args:
        checkpoint: the model's files.
        structure: blocks, branches and linear layers of the model; found in its modules if None.
    """

    def __init__(self, checkpoint: Checkpoint, structure: Structure | None = None) -> None:
        self.checkpoint = checkpoint
        self._given = structure

    @classmethod
    def open(cls, path: str | Path, *, trust_remote_code: bool = False) -> Self:
        """Open the model in a folder, or the one of this name on the Hugging Face hub.

        Args:
            path: the folder or the name.
            trust_remote_code: whether to allow Python code that comes with the model.

        Raises:
            ValueError: there is no such model, or it is not a dense decoder-only language model.
        """
        return cls(Checkpoint(path, trust_remote_code=trust_remote_code))

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        """The modules with their parameters on the meta device, to look at and not to change."""
        return self.checkpoint.skeleton()

    @cached_property
    def structure(self) -> Structure:
        """The blocks, branches and linear layers.

        Raises:
            ValueError: the model's blocks cannot be found by rule.
        """
        return find_structure(self.skeleton) if self._given is None else self._given

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type that most stored weights have."""
        return self.checkpoint.dtype

    @cached_property
    def parameters(self) -> int:
        """The number of parameters; tied ones count once."""
        return sum(parameter.numel() for parameter in self.skeleton.parameters())
