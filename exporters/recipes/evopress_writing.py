"""The export format `evopress`: a profile as one of EvoPress's files.

EvoPress's `eval_ppl.py` and `lmeval.py` read the file and load EvoPress's own levels.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...spaces.levels.labels import Unstructured, parse_label
from ...spaces.storage.files import write_atomic
from ..artifact.appearing import appearing
from ..artifact.model_card import write_card
from ..artifact.record import write_record
from ..artifact.winner import Winner
from .evopress import EvoPressConfiguration, Scale, read_evopress

_SENTENCE = (
    "`{name}` gives EvoPress the level of every layer. EvoPress takes its own weights; the figures below are of the "
    "weights of paretopress."
)
_OPTIONS = {
    "quantization": "--quant_weights_path LEVELS --quant_config_path",
    "sparsity": "--sparse_weights_path LEVELS --sparse_config_path",
    "drop": "--drop_layer_config",
}


def export_evopress(winner: Winner, output: Path, overwrite: bool) -> list[str]:
    """Write the winner's profile as one of EvoPress's files.

    Fused groups are split into their modules, because EvoPress's loader looks for a module of each name.

    Returns:
        Lines for the user that say how EvoPress uses the file and how paretopress imports it again.

    Raises:
        ValueError: EvoPress's files cannot express a level, or the levels are of different kinds.
        FileExistsError: `output` holds something, and `overwrite` is not set or it is not an export.
        OSError: reading the file gives another profile.
    """
    units = _plain_units(winner)
    ladder = winner.config.space.ladder if winner.config else None
    scale = scale_of(units, ladder.step if ladder else Scale().step)
    configuration = from_units(units, scale.step)
    configuration = replace(configuration, levels=configuration.modules)
    name = file_name(configuration)
    with appearing(output, winner.sources, overwrite) as folder:
        write_atomic(folder / name, configuration.text())
        _verify(folder / name, configuration, scale)
        write_card(folder, winner, _SENTENCE.format(name=name))
        write_record(
            folder,
            "evopress",
            winner,
            {"file": name, "kind": configuration.kind, **_said(configuration, scale)},
        )
    path = output / name
    count = len(configuration.levels) or len(configuration.drops)
    what = {"quantization": "bit widths", "sparsity": "sparsity levels", "drop": "blocks"}[configuration.kind]
    return [
        f"{path}: {count} {what}",
        "EvoPress takes its own weights, not those that were measured",
        f"next: eval_ppl.py {winner.checkpoint.path} {_OPTIONS[configuration.kind]} {path}",
        " ".join(
            [
                f"to read the file again: paretopress import {path}",
                *_flags(configuration, scale),
                "--output profile.yaml",
            ]
        ),
    ]


def from_units(units: Mapping[str, str], step: int = 1_000_000) -> EvoPressConfiguration:
    """Return the content of EvoPress's file for a profile; `EvoPressConfiguration.units` is the inverse.

    Args:
        units: labels of the profile by unit name.
        step: number of zeros by which neighbouring sparsity levels differ.

    Raises:
        ValueError: EvoPress's files cannot express a label, or the labels are of different kinds.
    """
    if any(label in ("keep", "drop") for label in units.values()):
        return _from_branches(units)
    levels: dict[str, int] = {}
    bases: set[float | None] = set()
    grids = set()
    for name, label in units.items():
        scheme = parse_label(label)
        if scheme.grid is not None and scheme.sparsity is None:
            bases.add(None)
            grids.add((scheme.grid.group, scheme.grid.symmetric))
            levels[name] = scheme.grid.bits
        elif isinstance(scheme.sparsity, Unstructured) and scheme.grid is None:
            if scheme.sparsity.offset % step:
                raise ValueError(f"level {label!r} of {name} is not a whole number of steps of {step} zeros")
            bases.add(round(100 * scheme.sparsity.fraction, 10))
            levels[name] = scheme.sparsity.offset // step
        else:
            raise ValueError(
                f"level {label!r} of {name} cannot be written to EvoPress's files, which hold bits or sparsity"
            )
    if len(bases) != 1:
        raise ValueError("levels of different kinds or base sparsities do not fit one EvoPress file")
    if len(grids) > 1:
        raise ValueError(
            "levels of different group sizes or with and without zero points do not fit one EvoPress file, which holds "
            "only bits"
        )
    base = bases.pop()
    return EvoPressConfiguration("quantization" if base is None else "sparsity", levels, base=base)


def scale_of(units: Mapping[str, str], step: int) -> Scale:
    """Return the meaning of the numbers that `from_units` writes: group size and symmetry of the grids, and the step.

    The grids of all units must have the same group size and symmetry, as `from_units` requires.
    """
    grids = [parse_label(label).grid for label in units.values() if label not in ("keep", "drop")]
    grid = next((grid for grid in grids if grid is not None), None)
    return Scale(step=step) if grid is None else Scale(grid.group, grid.symmetric, step=step)


def file_name(configuration: EvoPressConfiguration) -> str:
    """Return the name of the file, which is EvoPress's own name for drops.

    The name of a sparsity file ends in the base sparsity, because the content of the file does not tell it.
    """
    if configuration.kind == "drop":
        return "layer_drop_config.txt"
    base = "" if configuration.base is None else f"_{configuration.base:.10g}"
    return {"quantization": "quant_config", "sparsity": "sparse_config"}[configuration.kind] + base + ".txt"


def _plain_units(winner: Winner) -> dict[str, str]:
    """Return the winner's labels by unit name, reduced to one kind of label if possible.

    If layers have levels and no branch is dropped, the labels `keep` of branches are left out. If only branches have
    labels, branches that are not units get the label `keep`.
    """
    units = dict(winner.profile.units)
    levels = {name: label for name, label in units.items() if label not in ("keep", "drop")}
    if levels and "drop" not in units.values():
        return levels
    if not levels:
        every = [
            f"blocks.{block.index}.{branch.kind}"
            for block in winner.structure.blocks
            for branch in block.branches
        ]
        return dict.fromkeys(every, "keep") | units
    return units


def _verify(path: Path, meant: EvoPressConfiguration, scale: Scale) -> None:
    """Check that reading the file, as `paretopress import` does, gives the same profile."""
    found = read_evopress(path, meant.kind)
    if found != meant or found.units(scale) != meant.units(scale):
        raise OSError(f"{path.name} does not read back as the profile; check the disk and export again")


def _said(configuration: EvoPressConfiguration, scale: Scale) -> dict[str, Any]:
    """Return the meaning of the numbers in the file, for the record of the export."""
    if configuration.kind == "quantization":
        return {"group": scale.group, "symmetric": scale.symmetric}
    return {"base": configuration.base, "step": scale.step} if configuration.kind == "sparsity" else {}


def _flags(configuration: EvoPressConfiguration, scale: Scale) -> list[str]:
    """Return the options of `paretopress import` with which it reads the same profile."""
    if configuration.kind == "quantization":
        return [
            "--kind quantization",
            f"--group {scale.group or 0}",
            *(["--symmetric"] if scale.symmetric else []),
        ]
    return ["--kind sparsity", f"--step {scale.step}"] if configuration.kind == "sparsity" else []


def _from_branches(units: Mapping[str, str]) -> EvoPressConfiguration:
    """Return the content of a drop file for a profile of branches or blocks."""
    removed: dict[int, set[str]] = {}
    for name, label in units.items():
        match = re.fullmatch(r"blocks\.(\d+)(?:\.(attention|mlp))?", name)
        if match is None or label not in ("keep", "drop"):
            raise ValueError(
                f"{name}: {label} does not fit an EvoPress drop list, which holds only kept and dropped branches"
            )
        branches = (match[2],) if match[2] else ("attention", "mlp")
        removed.setdefault(int(match[1]), set()).update(branches if label == "drop" else ())
    if sorted(removed) != list(range(len(removed))):
        raise ValueError(
            "an EvoPress drop list names every block, but some blocks have no unit in the profile"
        )
    return EvoPressConfiguration("drop", {}, tuple(tuple(sorted(removed[i])) for i in range(len(removed))))
