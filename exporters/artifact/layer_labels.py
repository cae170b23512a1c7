"""Conversion of a profile's units to the labels of the model's layers."""

from collections.abc import Mapping

from ...spaces.model.structure import Structure
from ...spaces.nearest import nearest


def layer_labels(units: Mapping[str, str], structure: Structure) -> dict[str, str]:
    """Return the label of every layer that is not dense, by path, as `Space.assignment` does but without a space.

    All layers of a dropped branch or block get `drop`, even if other units give them a level.

    Args:
        units: maps unit name to label; a unit is a layer, a group of layers, a branch or a block.
        structure: blocks, branches and linear layers of the model.

    Raises:
        ValueError: a unit is not in the model, or its label does not suit its kind.
    """
    layers = {linear.path for linear in (*structure.ends.linears, *structure.linears)}
    branches = {
        name: branch.linears
        for block in structure.blocks
        for branch in block.branches
        for name in (f"blocks.{block.index}.{branch.kind}",)
    } | {f"blocks.{block.index}": block.linears for block in structure.blocks}
    found: dict[str, str] = {}
    for name, label in units.items():
        paths = name.split(",")
        if name not in branches and (unknown := [path for path in paths if path not in layers]):
            raise ValueError(
                f"unit {unknown[0]!r} is not in the model; {nearest(unknown[0], [*layers, *branches])}"
            )
        if (name in branches) != (label in ("keep", "drop")):
            raise ValueError(
                f"unit {name!r} cannot be {label!r}; branches are kept or dropped, layers take a level"
            )
        if name not in branches and label != "dense":
            found |= dict.fromkeys(paths, label)
    for name, label in units.items():
        if label == "drop":
            found |= dict.fromkeys((linear.path for linear in branches[name]), label)
    return found
