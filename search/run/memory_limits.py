"""The memory that an evaluator may use on this machine, and what it is used for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from ...evaluators.population.population import SLICE
from ...evaluators.runner.gradients import GradientRunner
from ...evaluators.runner.launch import Pace
from ...evaluators.runner.memory import MemoryPlan, Needs, share_out
from ...evaluators.runner.numerics import EvaluationConfig
from ...spaces.budget import parse_bytes
from ...spaces.model.structure import Structure
from .machine import DTYPES, block_weights, devices_of, free_memory


@dataclass(frozen=True)
class MemoryLimits:
    """The memory that one model may use; the amount of free memory is read at first use and then remembered.

    Attributes:
        evaluation: settings of the evaluation; those that can change a value are no longer `auto`.
        length: number of tokens of a sequence.
        structure: blocks, branches and linear layers of the model.
        host: share of this machine's free main memory that `auto` may take, from 0 to 1.
        device: share of each GPU's free memory that `auto` may take, from 0 to 1.
    """

    evaluation: EvaluationConfig
    length: int
    structure: Structure
    host: float
    device: float

    @property
    def pace(self) -> Pace:
        """The settings of how blocks run their micro-batches."""
        evaluation = self.evaluation
        rows = int(evaluation.micro_batch) * self.length
        pace = Pace.of(block_weights(self.structure), rows, devices_of(evaluation)[0])
        most = self._device_bytes // (8 * self._row_bytes)
        return replace(pace, compiled=bool(evaluation.compile), rows=min(pace.rows, most))

    def plan(self, runner: GradientRunner, labels: Mapping[str, tuple[str, ...]]) -> MemoryPlan:
        """Plan which blocks stay on the devices of a runner and which are streamed to them.

        Args:
            runner: runner of the model, which has its embedding and head on the device already.
            labels: labels of the levels of every layer, by path.
        """
        evaluation = self.evaluation
        on_gpu = runner.device.type == "cuda"
        used = max(map(torch.cuda.memory_allocated, runner.devices)) if on_gpu else 0
        rows = int(evaluation.micro_batch) * self.length
        logits = 20 * int(evaluation.chunk) * self.structure.ends.head.out_features
        state = runner.hidden * runner.dtype.itemsize
        working = max(rows, self.pace.rows) * self._row_bytes + logits
        if self.pace.replayed:  # a recording reads matrices at fixed addresses, so no two blocks share memory
            weights = sum(linear.in_features * linear.out_features for linear in self.structure.linears)
            working += weights * runner.dtype.itemsize
        return share_out(
            self._device_bytes - used,
            self.host_bytes // 2 if on_gpu else 0,
            Needs(working, rows * state, state),
            self.structure,
            labels,
            runner.dtype,
            SLICE,
            len(runner.devices),
        )

    @property
    def _row_bytes(self) -> int:
        """An upper bound on the bytes of one position's activations while a block runs."""
        hidden = self.structure.ends.embedding.in_features
        widest = max((linear.out_features for linear in self.structure.linears), default=0)
        return (8 * hidden + 6 * widest) * DTYPES[self.evaluation.dtype].itemsize

    @cached_property
    def _device_bytes(self) -> int:
        """The number of bytes that may be used on each device, including what PyTorch has allocated already."""
        if (given := self.evaluation.memory) != "auto":
            return parse_bytes(given)
        devices = devices_of(self.evaluation)
        if devices[0].type != "cuda":
            return int(free_memory(devices[0]) * self.host) // 2
        free = min(free_memory(device) + torch.cuda.memory_allocated(device) for device in devices)
        return int(free * self.device) * 9 // 10

    @cached_property
    def host_bytes(self) -> int:
        """The number of bytes of main memory that may be used."""
        given = self.evaluation.host_memory
        free = int(free_memory(torch.device("cpu")) * self.host)
        return free // 2 if given == "auto" else parse_bytes(given)
