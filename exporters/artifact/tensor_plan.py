"""The plan of an export: every tensor to write, made from the tensors of the source checkpoint."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ...spaces.model.checkpoint import Checkpoint
from .compression import Compression
from .remains import Remains
from .stored_names import StoredNames
from .tensor_files import PlannedTensor

Store = Callable[[Compression, PlannedTensor], list[PlannedTensor]]
"""A function that returns the tensors that replace the dense weight of a layer that has a level."""


def plan_tensors(
    checkpoint: Checkpoint,
    compression: Compression,
    left: Remains,
    store: Store,
) -> list[PlannedTensor]:
    """Plan every tensor to write, in the order of the source's files.

    Tensors of removed blocks and absent branches are left out, and the other blocks are renumbered. The weights and
    biases of all linear layers in other dropped branches become zeros. Apart from the numbers of blocks, and from the
    tensors that `store` replaces, names and types are those of the source.

    Args:
        checkpoint: files of the source model.
        compression: levels and dropped branches of the source model.
        left: blocks and branches of the source that are written.
        store: function that replaces the weight of a layer that has a level.
    """
    names = StoredNames(checkpoint, compression.structure)
    absent = tuple(f"{path}." for paths in left.absent.values() for path in paths)
    silent = {
        linear.path
        for block in compression.structure.blocks
        for branch in block.branches
        if branch.kind in compression.dropped.get(block.index, ())
        for linear in branch.linears
    }
    planned = []
    for path in checkpoint.files:
        with safe_open(path, framework="pt") as file:
            for key in list(file.keys()):
                inside = names.block(key)
                model_name = names.model_name(key)
                if (inside and inside.index in left.removed) or model_name.startswith(absent):
                    continue
                layer, _, leaf = model_name.rpartition(".")
                make = partial(_read, path, key)
                levelled = layer in compression.levels and leaf == "weight"
                if layer in silent:
                    make = partial(_zeros, path, key)
                elif levelled:
                    make = partial(_level, compression, layer, path, key)
                stored = file.get_slice(key)
                name = inside.renumbered(left.kept.index(inside.index)) if inside else key
                tensor = PlannedTensor(
                    name,
                    stored.get_dtype(),
                    tuple(stored.get_shape()),
                    make,
                    layer if levelled else "",
                )
                planned += store(compression, tensor) if levelled else [tensor]
    return planned


def _read(path: Path, key: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(key)
    return tensor


def _zeros(path: Path, key: str) -> Tensor:
    """Return zeros in the type and shape of a stored tensor."""
    return torch.zeros_like(_read(path, key))


def _level(compression: Compression, layer: str, path: Path, key: str) -> Tensor:
    """Return the weight of a layer at its level, in the type and layout of the stored weight `key`."""
    original, weight = _read(path, key), compression.weight(layer)
    if weight is None:
        return original
    return compression.linears[layer].turn(weight.cpu()).to(original.dtype)
