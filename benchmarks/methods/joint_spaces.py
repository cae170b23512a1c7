"""The spaces that `joint` compares, and the translation of their profiles into the joint space."""

from collections.abc import Mapping
from typing import Literal

from paretopress.spaces.configuration import SpaceConfig
from paretopress.spaces.levels.labels import parse_label
from paretopress.spaces.space import Space

Kind = Literal["bits", "sparsity", "drop"]
KINDS: tuple[Kind, ...] = ("bits", "sparsity", "drop")


def only(kind: Kind, joint: SpaceConfig) -> SpaceConfig:
    """Return the part of a joint space that compresses in one way: the levels of that kind and `dense`, or the drops.

    Raises:
        ValueError: the joint space lacks `dense` or drops, so it does not contain its parts.
    """
    if "dense" not in joint.levels or joint.drop == "none":
        raise ValueError("a joint space without `dense` or drops does not contain its parts; add both")
    levels = {
        "bits": [label for label in joint.levels if _is(label, grid=True, sparse=False)],
        "sparsity": [label for label in joint.levels if _is(label, grid=False, sparse=True)],
        "drop": [],
    }[kind]
    drop = joint.drop if kind == "drop" else "none"
    given = (*levels, "dense") if levels else ()
    return joint.model_copy(update={"levels": given, "drop": drop})


def _is(label: str, *, grid: bool, sparse: bool) -> bool:
    scheme = parse_label(label)
    return (scheme.grid is not None, scheme.sparsity is not None) == (grid, sparse)


def as_joint(profile: Mapping[str, str], joint: Space) -> dict[str, str]:
    """Translate a profile of one kind into the joint space: units that it does not name are kept or dense."""
    labels: dict[str, str] = {}
    for unit in joint.units:
        parent = None if unit.parent is None else joint.units[unit.parent].name
        if parent is None or labels[parent] != "drop":
            labels[unit.name] = profile.get(unit.name, "keep" if unit.droppable else "dense")
    return labels


def mix(profile: Mapping[str, str], weights: Mapping[str, int]) -> dict[str, float]:
    """Return for each label the share of the linear weights at that level, the largest share first.

    Args:
        profile: label of every unit by unit name, without units under a dropped branch.
        weights: number of linear weights of every unit by unit name; those of a branch are the weights of its layers.
    """
    searched = any(label not in ("keep", "drop") for label in profile.values())
    found: dict[str, int] = {}
    for name, label in profile.items():
        if label != "keep":
            found[label] = found.get(label, 0) + weights[name]
        elif not searched:  # in a space of branches only, a kept branch has no units for its layers
            found["dense"] = found.get("dense", 0) + weights[name]
    total = sum(found.values())
    return {label: found[label] / total for label in sorted(found, key=lambda label: -found[label])}
