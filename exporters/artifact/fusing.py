"""Checks and changes of layers that serving engines fuse into one matrix (q/k/v, gate/up) and that need one scheme."""

from collections.abc import Mapping
from dataclasses import replace

from ...spaces.levels.labels import Grid, kept, parse_label, stored_bits
from ...spaces.levels.sizes import compressed_tensors
from ...spaces.model.structure import Structure, fused_groups
from ...spaces.nearest import nearest
from ...spaces.profile_file import ProfileFile
from ...spaces.unit import Unit
from .limits import check_budget, run_space
from .winner import Winner

FUSED = ("refuse", "raise", "keep")
"""The ways to treat fused layers whose schemes differ.

`refuse` writes nothing, `raise` gives all layers the widest scheme of their group, and `keep` writes the layers as they
are.
"""


def check_fused(name: str) -> str:
    """Return `name`, which must be one of `FUSED`.

    Raises:
        ValueError: `name` is not one of `FUSED`.
    """
    if name not in FUSED:
        raise ValueError(f"--fused {name!r} is unknown; {nearest(name, FUSED)}")
    return name


def mixed_groups(structure: Structure, assignment: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Return the fused groups whose layers differ in bits, group size or symmetry.

    A layer whose level has no grid counts as dense. Groups with a dropped layer are left out.
    """
    groups = [g for g in fused_groups(structure) if "drop" not in {assignment.get(path) for path in g}]
    return [g for g in groups if len({_grid(assignment.get(path, "dense")) for path in g}) > 1]


def refuse_mixed(assignment: Mapping[str, str], groups: list[tuple[str, ...]]) -> None:
    """Refuse an assignment with fused groups whose schemes differ.

    Args:
        assignment: maps layer path to label; layers that are not named are dense.
        groups: the groups that `mixed_groups` found.

    Raises:
        ValueError: there is such a group; the message names its layers and the remedies.
    """
    if not groups:
        return
    layers = ", ".join(f"{path} {assignment.get(path, 'dense')}" for path in groups[0])
    more = f" and {len(groups) - 1} more groups" if len(groups) > 1 else ""
    raise ValueError(
        f"{layers}{more} differ in scheme, but vLLM fuses such layers and would read them wrongly; give --fused raise, "
        "search with space.units.tie=vllm, or give --fused keep to write a model for transformers only"
    )


def raised(winner: Winner, groups: list[tuple[str, ...]]) -> ProfileFile:
    """Return the winner's profile with every layer of `groups` at the widest scheme of its group.

    A layer that already has this scheme keeps its level. Another layer takes the dearest level with this scheme that
    its unit has, and that keeps no fewer weights than its present level. The held-out figures are left out, because
    they were measured for another profile.

    Raises:
        ValueError: a unit has no such level, or the new profile exceeds the budget.
    """
    space = run_space(winner)
    levels = list(winner.profile.profile(space))
    unit_of = {path: i for i, unit in enumerate(space.units) if not unit.droppable for path in unit.modules}
    for group in groups:
        labels = {path: winner.assignment.get(path, "dense") for path in group}
        inputs = next(n.in_features for n in winner.structure.linears if n.path == group[0])
        widest = max(labels.values(), key=lambda label: _width(label, inputs))
        for path, label in labels.items():
            if _grid(label) != _grid(widest):
                levels[unit_of[path]] = _dearest(space.units[unit_of[path]], label, widest, inputs)
    profile = tuple(levels)
    check_budget(winner, space, profile, f"raising {len(groups)} fused groups to their widest scheme")
    return replace(winner.profile, units=space.describe(profile), costs=space.costs(profile), heldout={})


def _dearest(unit: Unit, present: str, like: str, inputs: int) -> int:
    """Return the index of the unit's dearest level with the grid of another label.

    Args:
        unit: unit that the layer belongs to.
        present: label of the layer now; only levels that keep at least as many weights are candidates.
        like: label that has the wanted grid.
        inputs: number of inputs of the layer.

    Raises:
        ValueError: the unit has no such level.
    """
    having = [
        (_width(label, inputs), i)
        for label, i in unit.index.items()
        if _grid(label) == _grid(like) and _kept(label) >= _kept(present)
    ]
    if not having:
        raise ValueError(
            f"{unit.name} cannot be raised to the scheme of {like!r}, which none of its levels has "
            f"({', '.join(unit.index)}); "
            "search with space.units.tie=vllm, or use --fused keep"
        )
    return max(having)[1]


def _kept(label: str) -> int:
    """Return the number of weights, out of 2^30, that may be nonzero at a level."""
    return kept(parse_label(label), 1 << 30)


def _grid(label: str) -> Grid | None:
    """Return the grid of a level, or None for a level without integers."""
    return parse_label(label).grid


def _width(label: str, inputs: int) -> tuple[int, int]:
    """Return the key that orders labels: bytes in `compressed-tensors` files, then bits that the level stores."""
    scheme, shape = parse_label(label), (64, inputs)
    return compressed_tensors(scheme, shape, 16), stored_bits(scheme, shape)
