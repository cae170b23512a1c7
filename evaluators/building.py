"""Building the level database: one pass through the blocks that gathers Hessians and calls the builders.

Shapes: B micro-batch, T positions, D hidden, I inputs of a layer.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..spaces.builders import BuilderConfig, build
from ..spaces.checkpoint import Checkpoint
from ..spaces.database import Errors, LevelDatabase
from ..spaces.layer_error import layer_errors
from ..spaces.packed import Packed
from ..spaces.space import Space
from ..spaces.structure import Block, Linear, Structure
from .runner import BlockRunner, LoadedBlock

Labels = Mapping[str, tuple[str, ...]]
"""Layer path to the labels that are built for it."""


class CalibratedBuilderConfig(BuilderConfig):
    """How levels are made, and from which activations.

    Attributes:
        tokens: calibration tokens that the Hessians are summed over.
        chain: None takes every Hessian from the dense model; a label (EvoPress quantises with `w3g128a`) puts
            that level into the earlier blocks first. It must be among the space's levels.
    """

    tokens: int = Field(default=131_072, gt=0)
    chain: str | None = None


def labels_to_build(space: Space) -> dict[str, tuple[str, ...]]:
    """Every layer's labels that the database must hold, in order of name."""
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

    Calibration runs through the dense model, or, with `config.chain`, through a model whose earlier blocks
    take that level (EvoPress's sequential quantisation). Memory: the hidden states of all calibration tokens
    in host memory, one block and its Hessians on the device.

    Args:
        database: where the levels go.
        labels: layer path to labels.
        runner: runs the dense model block by block.
        tokens_NT: calibration tokens; N a multiple of the runner's micro-batch.
        config: builders and their settings.
        progress: called with each finished part's name.
    """
    structure, checkpoint = runner.structure, runner.checkpoint
    _build_ends(database, labels, structure, checkpoint, config)
    missing = [
        block.index for block in structure.blocks if not database.has(_part(block)) and _built(block, labels)
    ]
    if not missing:
        return
    micro_batches = np.split(tokens_NT.astype(np.int64), len(tokens_NT) // runner.micro_batch)
    states = [
        runner.embed(torch.from_numpy(tokens_BT).to(runner.device)).cpu() for tokens_BT in micro_batches
    ]
    for block in structure.blocks[: missing[-1] + 1]:
        part, linears = _part(block), _built(block, labels)
        with runner.block(block.index) as loaded:
            outputs = None
            if linears and not database.has(part):
                hessians, outputs = _hessians(loaded, states, runner.device)
                database.write(
                    part, *_build_part(linears, labels, hessians, checkpoint, config, runner.device)
                )
            if config.chain is not None:
                loaded.install(_chained(database, linears, config.chain, runner.device), ())
                outputs = None
            states = outputs or [loaded(states_BTD.to(runner.device)).cpu() for states_BTD in states]
            loaded.install({}, ())
        progress(part)


def _part(block: Block) -> str:
    return f"block-{block.index:03d}"


def _built(block: Block, labels: Labels) -> list[Linear]:
    """The block's layers that have levels to build."""
    return [linear for linear in block.linears if linear.path in labels]


def _chained(
    database: LevelDatabase, linears: list[Linear], chain: str, device: torch.device
) -> dict[str, Tensor]:
    return {linear.path: database.load(linear.path, chain, device).dense() for linear in linears}


def _hessians(
    loaded: LoadedBlock, states: list[Tensor], device: torch.device
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Sum of x x^T over all calibration positions, per layer (float32, (I, I)), and the block's outputs.

    Layers that read the same tensor share one Hessian.
    """
    hessians: dict[str, Tensor] = {}
    outputs = []
    for states_BTD in states:
        output_BTD, inputs = loaded.record(states_BTD.to(device))
        outputs.append(output_BTD.cpu())
        first: dict[int, str] = {}
        for path, inputs_BTI in inputs.items():
            twin = first.setdefault(inputs_BTI.data_ptr(), path)
            if twin != path:
                hessians[path] = hessians[twin]
                continue
            x_PI = inputs_BTI.reshape(-1, inputs_BTI.shape[-1]).float()
            if path in hessians:
                hessians[path].addmm_(x_PI.T, x_PI)
            else:
                hessians[path] = x_PI.T @ x_PI
    return hessians, outputs


def _build_part(
    linears: list[Linear],
    labels: Labels,
    hessians: Mapping[str, Tensor],
    checkpoint: Checkpoint,
    config: BuilderConfig,
    device: torch.device,
) -> tuple[dict[str, dict[str, Packed]], Errors]:
    levels: dict[str, dict[str, Packed]] = {}
    errors: Errors = {}
    for linear in linears:
        weight = linear.turn(checkpoint.tensor(f"{linear.path}.weight").to(device))
        hessian = hessians.get(linear.path)
        built = build(weight, hessian, labels[linear.path], config=config, dtype=checkpoint.dtype)
        levels[linear.path] = built
        dense = {label: packed.dense() for label, packed in built.items()}
        errors[linear.path] = layer_errors(weight, dense, hessian)
    return levels, errors


def _build_ends(
    database: LevelDatabase,
    labels: Labels,
    structure: Structure,
    checkpoint: Checkpoint,
    config: BuilderConfig,
) -> None:
    """Embeddings and head have no calibration inputs here: rounded to nearest, pruned by magnitude."""
    linears = [linear for linear in structure.ends.linears if linear.path in labels]
    if linears and not database.has("ends"):
        plain = config.model_copy(update={"quantizer": "rtn", "pruner": "magnitude"})
        database.write("ends", *_build_part(linears, labels, {}, checkpoint, plain, torch.device("cpu")))
