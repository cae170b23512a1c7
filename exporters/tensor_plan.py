"""What becomes of every tensor of a checkpoint when a profile is written out."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..spaces.checkpoint import Checkpoint
from .compression import Compression
from .stored_names import StoredNames
from .tensor_files import PlannedTensor

Store = Callable[[Compression, PlannedTensor], list[PlannedTensor]]
"""Which tensors stand for the dense weight of a layer that has a level."""


def plan_tensors(
    checkpoint: Checkpoint,
    compression: Compression,
    removed: tuple[int, ...],
    store: Store,
) -> list[PlannedTensor]:
    """Every tensor to write, in the order of the source's files.

    Tensors of `removed` blocks are left out and those of the next blocks renumbered; all linear layers of other
    dropped branches become zeros with their biases. Names and types stay the source's.
    """
    names = StoredNames(checkpoint, compression.structure)
    kept = [block.index for block in compression.structure.blocks if block.index not in removed]
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
                if inside and inside.index in removed:
                    continue
                layer, _, leaf = names.model_name(key).rpartition(".")
                make = partial(_read, path, key)
                levelled = layer in compression.levels and leaf == "weight"
                if layer in silent:
                    make = partial(_zeros, path, key)
                elif levelled:
                    make = partial(_level, compression, layer, path, key)
                stored = file.get_slice(key)
                name = inside.renumbered(kept.index(inside.index)) if inside else key
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
    return torch.zeros_like(_read(path, key))


def _level(compression: Compression, layer: str, path: Path, key: str) -> Tensor:
    original, weight = _read(path, key), compression.weight(layer)
    if weight is None:
        return original
    return compression.linears[layer].turn(weight.cpu()).to(original.dtype)
