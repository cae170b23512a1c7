"""The labels of a model's layers, as a profile's units give them."""

from collections.abc import Mapping

from ...spaces.model.structure import Structure
from ...spaces.nearest import nearest


def layer_labels(units: Mapping[str, str], structure: Structure) -> dict[str, str]:
    """Layer path to label, as `Space.assignment` gives it, from a profile's units and no space.

    Layers of a dropped branch are `drop` whatever else is said of them; dense layers are left out.

    Raises:
        ValueError: a unit that is neither a layer, a group of layers nor a branch or block of the model.
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
