"""The objects of a run, such as model, data, space and evaluator, built from its configuration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...evaluators.levels.building import build_database, labels_to_build
from ...evaluators.population.population import PopulationEvaluator
from ...evaluators.runner.gradients import GradientRunner
from ...evaluators.runner.memory import MemoryPlan
from ...evaluators.text.data import load_sequences
from ...evaluators.text.packing import Sequences
from ...evaluators.text.tokenizer import Tokenizer, load_tokenizer
from ...evaluators.trial import Fidelity
from ...spaces.budget import BudgetConfig
from ...spaces.construction import space_of
from ...spaces.levels.builders import REVISION
from ...spaces.levels.labels import parse_label, stored_bits
from ...spaces.model.checkpoint import Checkpoint
from ...spaces.model.dense_model import DenseModel
from ...spaces.model.structure import Structure
from ...spaces.space import Space
from ...spaces.storage.database import LevelDatabase
from ...spaces.storage.files import digest
from .configuration import RunConfig
from .machine import DTYPES, devices_of, numerics, resolve
from .memory_limits import MemoryLimits


@dataclass(frozen=True)
class Assembly:
    """The objects of a run. They are opened without heavy work; levels are built and evaluated only on demand.

    Attributes:
        config: configuration of the run. An `auto` that can change a value is resolved, unless another machine
            evaluates and its settings are not known yet.
        model: dense model of the run.
        tokenizer: tokenizer of the model.
        data: sequences of each data set by name.
        space: space of the profiles that are searched.
        limits: budgets, each with its exact limits by kind of cost.
        databases: folder that holds the level databases.
        numerics: libraries and hardware that decide the last bits of a value; empty before they are known.
        host: share of this machine's free main memory that `auto` may take, from 0 to 1.
        device: share of each GPU's free memory that `auto` may take, from 0 to 1.
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
        """The kind of cost that is the front's axis."""
        return next(iter(self.limits[0][1]))

    @property
    def archive_fidelity(self) -> Fidelity:
        """The first calibration sequences, on which the archive compares profiles."""
        length = self.config.data.length
        pool = len(self.data["calibration"].tokens)
        return Fidelity(0, 0, min(-(-self.config.archive_tokens // length), pool), length)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Everything that decides the weights of a level, independent of which other levels are built."""
        return {
            "model": self.checkpoint.fingerprint,
            "calibration": self.data["calibration"].fingerprint,
            "builder": self.config.builder.model_dump(mode="json") | {"revision": REVISION},
            "numerics": dict(self.numerics),
            **self._foreign,
        }

    @property
    def _foreign(self) -> dict[str, Any]:
        """The versions of the packages whose code computes levels of the space."""
        labels = {label for found in self.labels.values() for label in found}
        encodings = {encoding for label in labels if (encoding := parse_label(label).encoding)}
        return {
            package: version for encoding in encodings for package, version in encoding.versions().items()
        }

    @cached_property
    def database(self) -> LevelDatabase:
        """The level database for this recipe and these labels, which may not be filled yet."""
        recipe = self.recipe | {"labels": self.labels}
        return LevelDatabase(self.databases / digest(recipe), recipe)

    @cached_property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """The labels of the levels to build, by path of the layer."""
        return labels_to_build(self.space)

    @property
    def level_bytes(self) -> int:
        """The number of bytes that all levels take once they are built."""
        linears = (*self.structure.linears, *self.structure.ends.linears)
        shapes = {linear.path: (linear.out_features, linear.in_features) for linear in linears}
        return sum(
            -(-stored_bits(parse_label(label), shapes[layer]) // 8)
            for layer, labels in self.labels.items()
            for label in labels
        )

    @cached_property
    def runner(self) -> GradientRunner:
        """The runner of the dense model, which computes it block by block, forwards and backwards."""
        evaluation = self.config.evaluation
        return GradientRunner(
            self.model,
            device=devices_of(evaluation),
            dtype=DTYPES[evaluation.dtype],
            micro_batch=int(evaluation.micro_batch),
            length=self.config.data.length,
            pace=self._memory_limits.pace,
        )

    @cached_property
    def memory(self) -> MemoryPlan:
        """The plan of which blocks stay on the device and which are streamed, from the memory that is free at first."""
        return self._memory_limits.plan(self.runner, self.labels)

    @cached_property
    def _memory_limits(self) -> MemoryLimits:
        length = self.config.data.length
        return MemoryLimits(self.config.evaluation, length, self.structure, self.host, self.device)

    def build(self, progress: Callable[[str], None]) -> None:
        """Fill the level database.

        Args:
            progress: function that is called with the name of each finished part.
        """
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
        """The token ids of the calibration sequences that levels are built from, (N, T), in whole micro-batches."""
        size, tokens = self.runner.micro_batch, self.data["calibration"].tokens
        wanted = min(-(-self.config.builder.tokens // self.config.data.length), len(tokens))
        return tokens[: max(wanted // size, 1) * size]

    def evaluator(self, refitted: LevelDatabase | None = None) -> PopulationEvaluator:
        """Return an evaluator that evaluates profiles in this process.

        Args:
            refitted: refitted levels of one profile, or None for the level database of the run. With refitted levels
                the evaluator can evaluate that profile only.
        """
        return PopulationEvaluator(
            self.space,
            refitted or self.database,
            self.runner,
            self.data,
            self.config.fitness,
            memory=self.memory,
            teacher=self._memory_limits.host_bytes // 4,
            chunk=int(self.config.evaluation.chunk),
            recipe=refitted.recipe if refitted else self.recipe,
        )


def assemble(
    config: RunConfig,
    databases: Path,
    data: Mapping[str, Sequences] | None = None,
    *,
    here: bool = True,
    host: float = 1.0,
    device: float = 1.0,
) -> Assembly:
    """Open the model, read and pack the data, build the space and check the budgets.

    Args:
        config: configuration of the run.
        databases: folder that holds the level databases.
        data: sequences of each data set by name, or None to read and pack the text that the configuration names.
        here: whether this machine evaluates; otherwise every `auto` stays, and the numerics are not known.
        host: share of this machine's free main memory that `auto` may take, from 0 to 1.
        device: share of each GPU's free memory that `auto` may take, from 0 to 1.

    Raises:
        ValueError: model, data, levels or budgets cannot be used; this is found before any heavy work.
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
            f"budgets begin with different costs ({', '.join(sorted(axes))}); begin all with the same cost"
        )
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    data = data or load_sequences(config.data, tokenizer, config.seed)
    known = numerics(config.evaluation) if here else {}
    return Assembly(config, model, tokenizer, data, space, limits, databases, known, host, device)


def _check_chain(config: RunConfig, space: Space) -> None:
    chain = config.builder.chain
    for layer, labels in labels_to_build(space).items():
        if chain is not None and chain not in labels:
            raise ValueError(f"builder.chain {chain!r} is not a level of {layer}; add it to `space.levels`")
