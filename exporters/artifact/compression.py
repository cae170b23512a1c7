"""The levels of a model's layers, as an export writes them."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ...spaces.levels.ggml.ggml_encoding import GgmlEncoding
from ...spaces.levels.ggml.ggml_types import Blocks
from ...spaces.levels.labels import parse_label
from ...spaces.levels.packed import Packed
from ...spaces.model.structure import Linear, Structure
from ...spaces.nearest import nearest
from ...spaces.storage.database import LevelDatabase


def default_device(device: str | torch.device | None = None) -> torch.device:
    """Return the given device; if there is none, a GPU where one is available, else the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


class Compression:
    """The structure of a model with the levels of its layers, which are checked against the structure.

    Args:
        structure: blocks, branches and linear layers of the model.
        database: level database with the assigned levels; None if only `drop` is assigned.
        assignment: maps layer path to label. Layers that are not named are dense. `drop` must be the label of all
            layers of a branch or of none.
        device: device on which levels are unpacked.

    Attributes:
        structure: blocks, branches and linear layers of the model.
        linears: all linear layers of the model by path, embedding and head included.
        dropped: maps the index of a block to the kinds of its dropped branches; other blocks are left out.
        levels: maps layer path to label, only for layers that are neither dense nor dropped. A level of the embedding
            or the head is the level of both if they are tied.

    Raises:
        ValueError: a layer is unknown, a level has no database, or a branch is dropped in part.
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
                    f"layer {path} takes {label!r}, but there is no level database; give the database of the run"
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
        """Load a layer's level as the database stores it; return None for a dense layer.

        Raises:
            ValueError: the level has another shape than the layer.
        """
        if path not in self.levels or self._database is None:
            return None
        found = self._database.load(self._sources.get(path, path), self.levels[path], self._device)
        shape = (self.linears[path].out_features, self.linears[path].in_features)
        if found.shape != shape:
            raise ValueError(
                f"level {found.label!r} of {path} has shape {found.shape}, but the layer has {shape}; use the level "
                "database of this model"
            )
        return found

    def storage(self, path: str) -> Blocks:
        """Return the storage type of llama.cpp that is the level of a layer.

        Raises:
            ValueError: the level is not a storage type of llama.cpp.
        """
        encoding = parse_label(self.levels[path]).encoding
        if not isinstance(encoding, GgmlEncoding):
            raise ValueError(
                f"{path} takes {self.levels[path]!r}, which is no type of llama.cpp; search over levels such as q4_k, or "
                "export with --format hf"
            )
        return encoding.blocks

    def weight(self, path: str) -> Tensor | None:
        """Return the weight (O, I) of a layer at its level, or None for a dense layer."""
        packed = self.packed(path)
        return None if packed is None else packed.dense()

    def weights(self, linears: Iterable[Linear], dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the weights (O, I), by path, of those of `linears` that have a level, converted to `dtype`."""
        found = {}
        for linear in linears:
            weight = self.weight(linear.path)
            if weight is not None:
                found[linear.path] = weight.to(dtype)
        return found

    @property
    def empty(self) -> tuple[int, ...]:
        """The indices of the blocks whose branches are all dropped."""
        blocks = self.structure.blocks
        return tuple(i for i, kinds in self.dropped.items() if len(kinds) == len(blocks[i].branches))


def _dropped(structure: Structure, assignment: Mapping[str, str]) -> dict[int, tuple[str, ...]]:
    """Return the kinds of the dropped branches of every block that has any, by the index of the block.

    Raises:
        ValueError: a branch is dropped in part, or a layer outside the branches is dropped.
    """
    found: dict[int, tuple[str, ...]] = {
        block.index: kinds for block in structure.blocks if (kinds := block.dropped(assignment))
    }
    left = {path for path, label in assignment.items() if label == "drop"}
    for block in structure.blocks:
        for branch in block.branches:
            paths = {linear.path for linear in branch.linears}
            if paths & left and branch.kind not in found.get(block.index, ()):
                raise ValueError(
                    f"blocks.{block.index}.{branch.kind} is dropped in part; drop all its layers or none"
                )
            left -= paths
    if left:
        raise ValueError(f"{min(left)} cannot be dropped; only branches of blocks can")
    return found
