"""Installation of the levels that a model's labels name, one block at a time."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from ...spaces.model.structure import Block
from .block_weights import DENSE, Key
from .loaded import LoadedBlock

Configuration = tuple[Key, ...]
"""Path and label of every linear layer of a block."""


def configuration(block: Block, labels: Mapping[str, str]) -> Configuration:
    """Return the configuration of one block from the labels of a model by layer path; other layers are dense."""
    return tuple((linear.path, labels.get(linear.path, DENSE)) for linear in block.linears)


def wanted(block: Block, models: Iterable[Mapping[str, str]]) -> set[Key]:
    """Return the matrices of one block that at least one of the models needs; dropped layers need none."""
    return {key for labels in models for key in configuration(block, labels) if key[1] != "drop"}


def install(loaded: LoadedBlock, keys: Configuration, weights: Mapping[Key, Tensor]) -> None:
    """Install the configuration that a model has in a loaded block.

    Args:
        loaded: the block, loaded on its device.
        keys: configuration of the block.
        weights: matrix (O, I) of every key that is not dropped.
    """
    dropped = loaded.block.dropped(dict(keys))
    loaded.install({key[0]: weights[key] for key in keys if key[1] != "drop"}, dropped)
