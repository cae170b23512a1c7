"""Building of the level database, in one pass through the blocks that gathers Hessians and calls the builders.

Shapes: N sequences, T positions, O outputs of a layer, I inputs of a layer.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ...spaces.levels.builders import BuilderConfig, build_layers
from ...spaces.levels.cuda_graphs import Replays
from ...spaces.levels.layer_error import layer_errors
from ...spaces.levels.packed import Packed
from ...spaces.model.checkpoint import Checkpoint
from ...spaces.model.structure import Block, Linear, Structure
from ...spaces.space import Space
from ...spaces.storage.database import Errors, LevelDatabase
from ..runner.runner import BlockRunner
from .calibration import CalibrationStates, host_copy
from .writing import Writer

Labels = Mapping[str, tuple[str, ...]]
"""Labels that are built for each layer, by layer path."""


class CalibratedBuilderConfig(BuilderConfig):
    """Settings of how the weights of levels are built, and of the calibration text that their Hessians come from.

    Attributes:
        tokens: number of calibration tokens that the Hessians are summed over.
        chain: level that all earlier blocks have while the Hessians of a block are gathered, as EvoPress does with
            `w3g128a`. It must be among the space's levels. Null takes every Hessian from the dense model.
    """

    tokens: int = Field(default=131_072, gt=0)
    chain: str | None = None


def labels_to_build(space: Space) -> dict[str, tuple[str, ...]]:
    """Return the labels of every layer that the level database must hold, in order of path and of label."""
    found: dict[str, set[str]] = {}
    for unit in space.units:
        labels = {level.label for level in unit.levels} - {"dense", "keep", "drop"}
        for module in unit.modules if labels else ():
            found.setdefault(module, set()).update(labels)
    return {layer: tuple(sorted(labels)) for layer, labels in sorted(found.items())}


def build_database(
    database: LevelDatabase,
    labels: Labels,
    runner: BlockRunner,
    tokens_NT: np.ndarray,
    config: CalibratedBuilderConfig,
    *,
    progress: Callable[[str], None] = lambda part: None,
) -> None:
    """Fill `database` with every level in `labels`; parts that are there already are not built again.

    Calibration tokens run through the dense model. If `config.chain` names a level, the blocks before the one that is
    built have this level instead (EvoPress's sequential quantisation). Memory: the hidden states of all calibration
    tokens in host memory, one block and its Hessians on the device.

    Args:
        database: level database that the levels are written to.
        labels: labels to build for each layer, by layer path.
        runner: block runner of the dense model.
        tokens_NT: calibration tokens; N is a multiple of the runner's micro-batch.
        config: builders and their settings.
        progress: function that is called with the name of each finished part.
    """
    structure, checkpoint = runner.structure, runner.checkpoint
    build_ends(database, labels, structure, checkpoint, config)
    missing = [
        block.index
        for block in structure.blocks
        if not database.has(part_of(block)) and _built(block, labels)
    ]
    if not missing:
        return
    states = CalibrationStates(runner, tokens_NT)
    replays = Replays()
    with Writer(database, progress) as writer:
        for block in structure.blocks[: missing[-1] + 1]:
            part, linears = part_of(block), _built(block, labels)
            with runner.block(block.index) as loaded:
                build_it = bool(linears) and not database.has(part)
                if build_it:
                    hessians = states.hessians(loaded, advance=config.chain is None)
                    built = _build_part(linears, labels, hessians, checkpoint, config, loaded.device, replays)
                    writer.write(part, *built)
                if not build_it or config.chain is not None:
                    writer.finish()
                    if config.chain is not None:
                        loaded.install(_chained(database, linears, config.chain, loaded.device), ())
                    states.advance(loaded)
                loaded.install({}, ())
            if not build_it:
                progress(part)


def part_of(block: Block) -> str:
    """Return the name of the part of a level database that holds the levels of a block."""
    return f"block-{block.index:03d}"


def _built(block: Block, labels: Labels) -> list[Linear]:
    """Return the linear layers of a block that have levels to build."""
    return [linear for linear in block.linears if linear.path in labels]


def _chained(
    database: LevelDatabase, linears: list[Linear], chain: str, device: torch.device
) -> dict[str, Tensor]:
    """Return the weights (O, I) of layers at the level `chain`, by layer path."""
    return {linear.path: database.load(linear.path, chain, device).dense() for linear in linears}


def _build_part(
    linears: list[Linear],
    labels: Labels,
    hessians: Mapping[str, Tensor],
    checkpoint: Checkpoint,
    config: BuilderConfig,
    device: torch.device,
    replays: Replays,
) -> tuple[dict[str, dict[str, Packed]], Errors]:
    """Build the levels of a part's layers; layers that share a Hessian are built together.

    Returns:
        The levels, in host memory, and their errors, both by layer path and label.
    """
    levels: dict[str, dict[str, Packed]] = {linear.path: {} for linear in linears}
    errors: Errors = {linear.path: {} for linear in linears}
    together: dict[int | str, list[Linear]] = {}
    for linear in linears:
        key = id(hessians[linear.path]) if linear.path in hessians else linear.path
        together.setdefault(key, []).append(linear)
    for twins in together.values():
        hessian = hessians.get(twins[0].path)
        weights = {
            twin.path: twin.turn(checkpoint.tensor(f"{twin.path}.weight").to(device)) for twin in twins
        }
        built = build_layers(weights, hessian, labels, config=config, dtype=checkpoint.dtype, replays=replays)
        for path, found in built.items():
            dense = {label: packed.dense() for label, packed in found.items()}
            errors[path] = layer_errors(weights[path], dense, hessian)
            levels[path] = {label: packed.map(host_copy) for label, packed in found.items()}
    return levels, errors


def build_ends(
    database: LevelDatabase,
    labels: Labels,
    structure: Structure,
    checkpoint: Checkpoint,
    config: BuilderConfig,
) -> None:
    """Build the levels of embedding and head and write them to `database`, unless they are there already.

    Embedding and head have no calibration inputs here, so they are rounded to the nearest value and pruned by
    magnitude.
    """
    linears = [linear for linear in structure.ends.linears if linear.path in labels]
    if linears and not database.has("ends"):
        plain = config.model_copy(update={"quantizer": "rtn", "pruner": "magnitude"})
        database.write(
            "ends", *_build_part(linears, labels, {}, checkpoint, plain, torch.device("cpu"), Replays())
        )
