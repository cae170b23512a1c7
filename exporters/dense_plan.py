"""What becomes of every tensor of a checkpoint when a profile is written out dense."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..search.messages import nearest
from ..spaces.checkpoint import Checkpoint
from ..spaces.database import LevelDatabase
from ..spaces.structure import Linear, Structure
from .stored_names import StoredNames
from .tensor_files import PlannedTensor


class Compression:
    """A model and the levels of its layers, checked.

    Args:
        structure: what the model consists of.
        database: where the levels are; None if nothing but `drop` is assigned.
        assignment: layer path to label; what is not named is dense, `drop` names whole branches.
        device: where levels are unpacked.

    Raises:
        ValueError: an unknown layer, a level without a database, or a branch dropped in part.
    """

    def __init__(
        self,
        structure: Structure,
        database: LevelDatabase | None,
        assignment: Mapping[str, str],
        device: torch.device,
    ) -> None:
        self.structure = structure
        self.linears = {linear.path: linear for linear in (*structure.ends.linears, *structure.linears)}
        for path, label in assignment.items():
            if path not in self.linears:
                raise ValueError(f"layer {path!r} is not in the model; {nearest(path, self.linears)}")
            if database is None and label not in ("dense", "drop"):
                raise ValueError(
                    f"layer {path} takes {label!r}, but there is no level database; give the run's"
                )
        self._database = database
        self._device = device
        self.dropped = _dropped(structure, assignment)
        self.levels = {path: label for path, label in assignment.items() if label not in ("dense", "drop")}
        ends = structure.ends.linears
        given = [end.path for end in ends if end.path in self.levels]
        tied = ends if structure.ends.tied and given else ()
        self._sources = {end.path: given[0] for end in tied}
        self.levels |= {end.path: self.levels[given[0]] for end in tied}

    def weight(self, path: str) -> Tensor | None:
        """The weight (out, in) of a layer at its level; None for a dense one."""
        if path not in self.levels or self._database is None:
            return None
        return self._database.load(self._sources.get(path, path), self.levels[path], self._device).dense()

    def weights(self, linears: tuple[Linear, ...]) -> dict[str, Tensor]:
        """The weights of those of `linears` that have a level."""
        found = {linear.path: self.weight(linear.path) for linear in linears}
        return {path: weight for path, weight in found.items() if weight is not None}

    @property
    def empty(self) -> tuple[int, ...]:
        """Blocks whose branches are all dropped."""
        blocks = self.structure.blocks
        return tuple(i for i, kinds in self.dropped.items() if len(kinds) == len(blocks[i].branches))


def _dropped(structure: Structure, assignment: Mapping[str, str]) -> dict[int, tuple[str, ...]]:
    """Block index to the kinds of its dropped branches."""
    found: dict[int, tuple[str, ...]] = {}
    left = {path for path, label in assignment.items() if label == "drop"}
    for block in structure.blocks:
        for branch in block.branches:
            paths = {linear.path for linear in branch.linears}
            if paths & left and not paths <= left:
                raise ValueError(
                    f"blocks.{block.index}.{branch.kind} is dropped in part; drop all its layers or none"
                )
            if paths <= left:
                found[block.index] = (*found.get(block.index, ()), branch.kind)
                left -= paths
    if left:
        raise ValueError(f"{min(left)} cannot be dropped; only branches of blocks can")
    return found


def plan_tensors(
    checkpoint: Checkpoint, compression: Compression, removed: tuple[int, ...]
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
                if layer in silent:
                    make = partial(_zeros, path, key)
                elif layer in compression.levels and leaf == "weight":
                    make = partial(_level, compression, layer, path, key)
                stored = file.get_slice(key)
                name = inside.renumbered(kept.index(inside.index)) if inside else key
                planned.append(PlannedTensor(name, stored.get_dtype(), tuple(stored.get_shape()), make))
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
    stored = compression.linears[layer].turn(weight.cpu())
    if stored.shape != original.shape:
        raise ValueError(
            f"level {compression.levels[layer]!r} of {layer} has shape {tuple(stored.shape)}, the model "
            f"{tuple(original.shape)}; use the level database of this model"
        )
    return stored.to(original.dtype)
