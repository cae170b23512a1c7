"""A model and the levels of its layers: what an export writes down."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ...spaces.levels.ggml import Blocks
from ...spaces.levels.labels import parse_label
from ...spaces.levels.packed import Packed
from ...spaces.model.structure import Linear, Structure
from ...spaces.nearest import nearest
from ...spaces.storage.database import LevelDatabase


def default_device(device: str | torch.device | None = None) -> torch.device:
    """The device that was named; else a GPU if there is one."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


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

    def packed(self, path: str) -> Packed | None:
        """A layer's level as it is stored; None for a dense layer.

        Raises:
            ValueError: the level has another shape than the layer.
        """
        if path not in self.levels or self._database is None:
            return None
        found = self._database.load(self._sources.get(path, path), self.levels[path], self._device)
        shape = (self.linears[path].out_features, self.linears[path].in_features)
        if found.shape != shape:
            raise ValueError(
                f"level {found.label!r} of {path} has shape {found.shape}, the model {shape}; use the level "
                "database of this model"
            )
        return found

    def storage(self, path: str) -> Blocks:
        """llama.cpp's storage type of a layer that has a level.

        Raises:
            ValueError: the level is none.
        """
        blocks = parse_label(self.levels[path]).blocks
        if blocks is None:
            raise ValueError(
                f"{path} takes {self.levels[path]!r}, which is no type of llama.cpp; search over levels such as q4_k, or "
                "export with --format hf"
            )
        return blocks

    def weight(self, path: str) -> Tensor | None:
        """The weight (out, in) of a layer at its level; None for a dense one."""
        packed = self.packed(path)
        return None if packed is None else packed.dense()

    def weights(self, linears: Iterable[Linear], dtype: torch.dtype) -> dict[str, Tensor]:
        """The weights of those of `linears` that have a level, in the type that they are computed with."""
        found = {}
        for linear in linears:
            weight = self.weight(linear.path)
            if weight is not None:
                found[linear.path] = weight.to(dtype)
        return found

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
