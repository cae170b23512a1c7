"""From a configuration to the objects of a run: the only place where names become objects."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...evaluators.levels.building import build_database, labels_to_build
from ...evaluators.population.population import SLICE, PopulationEvaluator
from ...evaluators.runner.gradients import GradientRunner
from ...evaluators.runner.launch import Pace
from ...evaluators.runner.memory import MemoryPlan, Needs, share_out
from ...evaluators.text.data import load_sequences
from ...evaluators.text.packing import Sequences
from ...evaluators.text.tokenizer import Tokenizer, load_tokenizer
from ...evaluators.trial import Fidelity
from ...spaces.budget import BudgetConfig, parse_bytes
from ...spaces.construction import space_of
from ...spaces.levels import ggml_quantizer
from ...spaces.levels.builders import REVISION
from ...spaces.levels.labels import parse_label, stored_bits
from ...spaces.model.checkpoint import Checkpoint
from ...spaces.model.dense_model import DenseModel
from ...spaces.model.structure import Structure
from ...spaces.space import Space
from ...spaces.storage.database import LevelDatabase
from ...spaces.storage.files import digest
from .configuration import RunConfig
from .machine import DTYPES, block_weights, devices_of, free_memory, numerics, resolve


@dataclass(frozen=True)
class Assembly:
    """What a run consists of before any heavy work.

    Attributes:
        config: the resolved configuration (no `auto` left in what decides a value).
        model: the dense model.
        tokenizer: tokenizer of the model.
        data: sequences by name.
        space: what is searched.
        limits: exact limits of each budget.
        databases: the folder that holds level databases.
        numerics: libraries and hardware that decide the last bits of a value; empty before they are known.
        host: share of this machine's free memory that `auto` may take.
        device: share of a GPU's.
    """

    config: RunConfig
    model: DenseModel
    tokenizer: Tokenizer
    data: Mapping[str, Sequences]
    space: Space
    limits: tuple[tuple[BudgetConfig, dict[str, int]], ...]
    databases: Path
    numerics: Mapping[str, Any]
    host: float = 1.0
    device: float = 1.0

    @property
    def checkpoint(self) -> Checkpoint:
        """The dense model's files."""
        return self.model.checkpoint

    @property
    def structure(self) -> Structure:
        """The dense model's blocks, branches and linear layers."""
        return self.model.structure

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of each data set by name."""
        return {name: sequences.fingerprint for name, sequences in self.data.items()}

    @property
    def kind(self) -> str:
        """The cost kind that is the front's axis."""
        return next(iter(self.limits[0][1]))

    @property
    def archive_fidelity(self) -> Fidelity:
        """The fixed calibration prefix on which the archive compares profiles."""
        length = self.config.data.length
        pool = len(self.data["calibration"].tokens)
        return Fidelity(0, 0, min(-(-self.config.archive_tokens // length), pool), length)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """What decides the values of a level, whatever other levels are built."""
        return {
            "model": self.checkpoint.fingerprint,
            "calibration": self.data["calibration"].fingerprint,
            "builder": self.config.builder.model_dump(mode="json") | {"revision": REVISION},
            "numerics": dict(self.numerics),
            **self._foreign,
        }

    @property
    def _foreign(self) -> dict[str, Any]:
        """Whose quantiser makes llama.cpp's types, if there are any."""
        labels = {label for found in self.labels.values() for label in found}
        foreign = any(parse_label(label).blocks for label in labels)
        return {"llama-cpp-python": ggml_quantizer.version()} if foreign else {}

    @cached_property
    def database(self) -> LevelDatabase:
        """The level database of this model, calibration, builder and set of labels; perhaps not filled yet."""
        recipe = self.recipe | {"labels": self.labels}
        return LevelDatabase(self.databases / digest(recipe), recipe)

    @cached_property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Labels to build, by layer."""
        return labels_to_build(self.space)

    @property
    def level_bytes(self) -> int:
        """Bytes of all levels once they are built."""
        linears = (*self.structure.linears, *self.structure.ends.linears)
        shapes = {linear.path: (linear.out_features, linear.in_features) for linear in linears}
        return sum(
            -(-stored_bits(parse_label(label), shapes[layer]) // 8)
            for layer, labels in self.labels.items()
            for label in labels
        )

    @cached_property
    def runner(self) -> GradientRunner:
        """Runs the dense model block by block, forwards and backwards."""
        evaluation = self.config.evaluation
        return GradientRunner(
            self.model,
            device=devices_of(evaluation),
            dtype=DTYPES[evaluation.dtype],
            micro_batch=int(evaluation.micro_batch),
            length=self.config.data.length,
            pace=self.pace,
        )

    @property
    def pace(self) -> Pace:
        """How blocks run their micro-batches."""
        evaluation = self.config.evaluation
        rows = int(evaluation.micro_batch) * self.config.data.length
        pace = Pace.of(block_weights(self.structure), rows, devices_of(evaluation)[0])
        most = self._device_memory // (8 * self._row_bytes)
        return replace(pace, compiled=bool(evaluation.compile), rows=min(pace.rows, most))

    def build(self, progress: Callable[[str], None]) -> None:
        """Fill the level database; `progress` is called with each finished part."""
        build_database(
            self.database,
            self.labels,
            self.runner,
            self.builder_tokens,
            self.config.builder,
            progress=progress,
        )

    @property
    def builder_tokens(self) -> np.ndarray:
        """The calibration sequences that levels are built from, in whole micro-batches."""
        size, tokens = self.runner.micro_batch, self.data["calibration"].tokens
        wanted = min(-(-self.config.builder.tokens // self.config.data.length), len(tokens))
        return tokens[: max(wanted // size, 1) * size]

    def evaluator(self, refitted: LevelDatabase | None = None) -> PopulationEvaluator:
        """Evaluates profiles in this process; with `refitted` the one profile whose levels those are."""
        host = self._host_memory
        return PopulationEvaluator(
            self.space,
            refitted or self.database,
            self.runner,
            self.data,
            self.config.fitness,
            memory=self.memory,
            teacher=host // 4,
            chunk=int(self.config.evaluation.chunk),
            recipe=refitted.recipe if refitted else self.recipe,
        )

    @cached_property
    def memory(self) -> MemoryPlan:
        """What stays on the device and what streams, from what is free now."""
        evaluation, runner = self.config.evaluation, self.runner
        on_gpu = runner.device.type == "cuda"
        used = max(map(torch.cuda.memory_allocated, runner.devices)) if on_gpu else 0
        rows = int(evaluation.micro_batch) * self.config.data.length
        logits = 20 * int(evaluation.chunk) * self.structure.ends.head.out_features
        state = runner.hidden * runner.dtype.itemsize
        working = max(rows, self.pace.rows) * self._row_bytes + logits
        if self.pace.replayed:  # every block's matrices have a place of their own, which its recordings read
            weights = sum(linear.in_features * linear.out_features for linear in self.structure.linears)
            working += weights * runner.dtype.itemsize
        return share_out(
            self._device_memory - used,
            self._host_memory // 2 if on_gpu else 0,
            Needs(working, rows * state, state),
            self.structure,
            self.labels,
            runner.dtype,
            SLICE,
            len(runner.devices),
        )

    @property
    def _row_bytes(self) -> int:
        """Bytes of one position's activations while a block runs, at most."""
        hidden = self.structure.ends.embedding.in_features
        widest = max((linear.out_features for linear in self.structure.linears), default=0)
        return (8 * hidden + 6 * widest) * DTYPES[self.config.evaluation.dtype].itemsize

    @cached_property
    def _device_memory(self) -> int:
        """Bytes that may be used on each device, what is there already included."""
        if (given := self.config.evaluation.memory) != "auto":
            return parse_bytes(given)
        devices = devices_of(self.config.evaluation)
        if devices[0].type != "cuda":
            return int(free_memory(devices[0]) * self.host) // 2
        free = min(free_memory(device) + torch.cuda.memory_allocated(device) for device in devices)
        return int(free * self.device) * 9 // 10

    @cached_property
    def _host_memory(self) -> int:
        given = self.config.evaluation.host_memory
        free = int(free_memory(torch.device("cpu")) * self.host)
        return free // 2 if given == "auto" else parse_bytes(given)


def assemble(
    config: RunConfig,
    databases: Path,
    data: Mapping[str, Sequences] | None = None,
    *,
    here: bool = True,
    host: float = 1.0,
    device: float = 1.0,
) -> Assembly:
    """Open the model, read and pack the data unless they are given, lay out the space and check the budgets.

    Args:
        config: of the run.
        databases: of the levels.
        data: sequences by name.
        here: whether this machine evaluates; otherwise `auto` stays, and numerics are unknown.
        host: share of this machine's free memory that `auto` may take.
        device: share of a GPU's.

    Raises:
        ValueError: anything about model, data, levels or budgets that cannot work, before any heavy work.
    """
    model = DenseModel.open(config.model, trust_remote_code=config.trust_remote_code)
    if model.dtype not in DTYPES.values():
        raise ValueError(f"{config.model} is stored in {model.dtype}; convert it to {', '.join(DTYPES)}")
    if here:
        config = resolve(config, model)
        torch.set_num_threads(int(config.evaluation.threads))
    space = space_of(model, config.space)
    _check_chain(config, space)
    limits = tuple((budget, budget.limits(space)) for budget in config.budgets)
    axes = {next(iter(limit)) for _, limit in limits}
    if len(axes) > 1:
        raise ValueError(
            f"budgets begin with different costs ({', '.join(sorted(axes))}); give them one axis"
        )
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    data = data or load_sequences(config.data, tokenizer, config.seed)
    known = numerics(config.evaluation) if here else {}
    return Assembly(config, model, tokenizer, data, space, limits, databases, known, host, device)


def _check_chain(config: RunConfig, space: Space) -> None:
    chain = config.builder.chain
    for layer, labels in labels_to_build(space).items():
        if chain is not None and chain not in labels:
            raise ValueError(f"builder.chain {chain!r} is no level of {layer}; add it to `space.levels`")
