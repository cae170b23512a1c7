"""A model that is opened once: its checkpoint, its modules without weights, and its structure."""

from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from transformers import PreTrainedModel

from .checkpoint import Checkpoint
from .structure import Structure, find_structure


class DenseModel:
    """A checkpoint with its modules and structure, which are found on first use and then kept.

    Args:
        checkpoint: files of the model.
        structure: blocks, branches and linear layers of the model; None finds them in the model's modules.
    """

    def __init__(self, checkpoint: Checkpoint, structure: Structure | None = None) -> None:
        self.checkpoint = checkpoint
        self._given = structure

    @classmethod
    def open(cls, path: str | Path, *, trust_remote_code: bool = False) -> Self:
        """Open a model from a folder or from the Hugging Face hub.

        Args:
            path: folder of the model, or its name on the hub.
            trust_remote_code: whether to run Python code that comes with the model.

        Raises:
            ValueError: there is no such model, or the model is not a dense decoder-only language model.
        """
        return cls(Checkpoint(path, trust_remote_code=trust_remote_code))

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        """The model with its parameters on the meta device; it is shared, so callers must not change it."""
        return self.checkpoint.skeleton()

    @cached_property
    def structure(self) -> Structure:
        """The blocks, branches and linear layers of the model.

        Raises:
            ValueError: the model's class is built in a way that the rules of `find_structure` do not cover.
        """
        return find_structure(self.skeleton) if self._given is None else self._given

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type that most stored weights have."""
        return self.checkpoint.dtype

    @cached_property
    def parameters(self) -> int:
        """The number of parameters of the model; tied parameters count once."""
        return sum(parameter.numel() for parameter in self.skeleton.parameters())
