"""Layers that serving engines fuse into one matrix: q/k/v, gate/up. Their levels must share one scheme there."""

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
"""What is done with fused layers of different schemes: nothing is written, all are raised to the widest scheme of
their group, or they are written as they are."""


def check_fused(name: str) -> str:
    """`name`, if it is a choice of `FUSED`.

    Raises:
        ValueError: it is none.
    """
    if name not in FUSED:
        raise ValueError(f"--fused {name!r} is unknown; {nearest(name, FUSED)}")
    return name


def mixed_groups(structure: Structure, assignment: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Fused groups whose layers differ in bits, group size or symmetry; what has no grid counts as dense."""
    groups = [g for g in fused_groups(structure) if "drop" not in {assignment.get(path) for path in g}]
    return [g for g in groups if len({_grid(assignment.get(path, "dense")) for path in g}) > 1]


def refuse_mixed(assignment: Mapping[str, str], groups: list[tuple[str, ...]]) -> None:
    """Refuse fused groups of different schemes.

    Raises:
        ValueError: there is one; the message names its layers and the remedies.
    """
    if not groups:
        return
    layers = ", ".join(f"{path} {assignment.get(path, 'dense')}" for path in groups[0])
    more = f" and {len(groups) - 1} groups more" if len(groups) > 1 else ""
    raise ValueError(
        f"{layers}{more} differ, and vLLM fuses such layers: it would read them wrongly; give --fused raise, "
        "search with space.units.tie=vllm, or give --fused keep for transformers alone"
    )


def raised(winner: Winner, groups: list[tuple[str, ...]]) -> ProfileFile:
    """The winner's profile with every layer of `groups` at the widest scheme of its group.

    Layers that have that scheme keep their level; the others take the dearest of theirs that has it. What was
    measured of the profile is left out: it is another one now.

    Raises:
        ValueError: a unit has no such level, or the profile's budget is exceeded.
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
    """Index of the unit's dearest level with the scheme of the label `like`, of those that keep as many weights."""
    having = [
        (_width(label, inputs), i)
        for label, i in unit.index.items()
        if _grid(label) == _grid(like) and _kept(label) >= _kept(present)
    ]
    if not having:
        raise ValueError(
            f"{unit.name} has no level with the scheme of {like!r} to be raised to (it has {', '.join(unit.index)}); "
            "search with space.units.tie=vllm, or use --fused keep"
        )
    return max(having)[1]


def _kept(label: str) -> int:
    """Weights that may be nonzero, of many."""
    return kept(parse_label(label), 1 << 30)


def _grid(label: str) -> Grid | None:
    return parse_label(label).grid


def _width(label: str, inputs: int) -> tuple[int, int]:
    """Order of labels: by the bytes of a layer in files, then by what the level stores."""
    scheme, shape = parse_label(label), (64, inputs)
    return compressed_tensors(scheme, shape, 16), stored_bits(scheme, shape)
