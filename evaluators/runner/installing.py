"""Blocks as a model's labels say."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from ...spaces.model.structure import Block
from .block_weights import DENSE, Key
from .loaded import LoadedBlock

Configuration = tuple[Key, ...]
"""(layer, label) of every linear layer of a block."""


def configuration(block: Block, labels: Mapping[str, str]) -> Configuration:
    """What a model has in one block."""
    return tuple((linear.path, labels.get(linear.path, DENSE)) for linear in block.linears)


def wanted(block: Block, models: Iterable[Mapping[str, str]]) -> set[Key]:
    """The matrices that these models have in one block."""
    return {key for labels in models for key in configuration(block, labels) if key[1] != "drop"}


def dropped_kinds(block: Block, assignment: Mapping[str, str]) -> tuple[str, ...]:
    """Branches of a block all of whose layers are dropped."""
    return tuple(
        branch.kind
        for branch in block.branches
        if all(assignment.get(linear.path) == "drop" for linear in branch.linears)
    )


def install(loaded: LoadedBlock, keys: Configuration, weights: Mapping[Key, Tensor]) -> None:
    """Make it the block of a model."""
    dropped = dropped_kinds(loaded.block, dict(keys))
    loaded.install({key[0]: weights[key] for key in keys if key[1] != "drop"}, dropped)
