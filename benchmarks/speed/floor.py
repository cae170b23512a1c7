"""The floor of a population's time: the arithmetic that shared prefixes leave, divided by the device's matrix rate.

The arithmetic counts two operations per weight and position of every linear layer, the causal half of the products of
attention, and the head. Each distinct pair of a prefix of blocks and a block counts once. Nothing else is counted.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from paretopress.spaces.model.structure import Block, Structure

ENOUGH = 0.1
"""Least number of seconds of one matrix product on the CPU."""

Assignment = Mapping[str, str]
"""Layer path to label; layers that are not named are dense."""


@dataclass(frozen=True)
class Work:
    """Numbers of floating-point operations.

    Attributes:
        linear: operations in the linear layers of the blocks.
        attention: operations in the two products of attention.
        head: operations in the head.
        apart: operations in the blocks if every candidate ran them without sharing.
    """

    linear: int = 0
    attention: int = 0
    head: int = 0
    apart: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.linear + other.linear,
            self.attention + other.attention,
            self.head + other.head,
            self.apart + other.apart,
        )

    def __mul__(self, times: int) -> "Work":
        return Work(self.linear * times, self.attention * times, self.head * times, self.apart * times)

    @property
    def blocks(self) -> int:
        """Operations in the blocks."""
        return self.linear + self.attention

    @property
    def total(self) -> int:
        """Operations in blocks and head."""
        return self.blocks + self.head

    @property
    def left(self) -> float:
        """Share of the blocks' operations that remains when prefixes are shared."""
        return self.blocks / self.apart if self.apart else 1.0


def work_left(
    structure: Structure,
    width: int,
    candidates: Sequence[Assignment],
    *,
    sequences: int,
    length: int,
    untaught: int = 0,
) -> Work:
    """Count the operations that a population needs when prefixes are shared.

    Args:
        structure: structure of the model.
        width: number of query heads times their size, the cost of attention's products per pair of positions.
        candidates: models of the population, each as a mapping from layer path to label; equal models count once.
        sequences: number of sequences that all candidates are evaluated on.
        length: number of tokens per sequence; logits of the last position are not needed.
        untaught: number of these sequences on which the dense model has to run too.
    """
    known = _sequence(structure, width, candidates, length)
    unknown = _sequence(structure, width, [*candidates, {}], length) if untaught else known
    return known * (sequences - untaught) + unknown * untaught


def _sequence(structure: Structure, width: int, candidates: Sequence[Assignment], length: int) -> Work:
    """Count the operations on one sequence, where the dense model is a candidate like any other."""
    linear, attention, apart = 0, 0, 0
    prefixes = [0] * len(candidates)
    for block in structure.blocks:
        numbers: dict[tuple[int, tuple[str | None, ...]], int] = {}
        costs: list[tuple[int, int]] = []
        for i, labels in enumerate(candidates):
            key = prefixes[i], tuple(labels.get(layer.path) for layer in block.linears)
            if key not in numbers:
                numbers[key] = len(costs)
                costs.append(_block(block, width, labels, length))
            prefixes[i] = numbers[key]
            apart += sum(costs[prefixes[i]])
        linear += sum(cost[0] for cost in costs)
        attention += sum(cost[1] for cost in costs)
    head = structure.ends.head
    per_model = 2 * head.in_features * head.out_features * (length - 1)
    return Work(linear, attention, per_model * len(set(prefixes)), apart)


def _block(block: Block, width: int, labels: Assignment, length: int) -> tuple[int, int]:
    """Return the operations of one block on one sequence, in its linear layers and in attention."""
    linear, attention = 0, 0
    for branch in block.branches:
        if all(labels.get(layer.path) == "drop" for layer in branch.linears):
            continue
        linear += sum(2 * layer.in_features * layer.out_features * length for layer in branch.linears)
        if branch.kind == "attention":
            attention += 2 * width * length * length
    return linear, attention


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the operations per second of square matrix products, as the median over several.

    The products are 8192^3 on a GPU. On the CPU they are so large that one takes at least `ENOUGH` seconds with the
    present number of threads.
    """
    size, together, repeats = 8192, 10, 7
    if device.type == "cpu":
        size, together, repeats = 128, 1, 5
        while _seconds(_product(size, device, dtype), 1) < ENOUGH and size < 8192:
            size *= 2
    product = _product(size, device, dtype)
    _seconds(product, together)
    return 2 * size**3 / median(_seconds(product, together) for _ in range(repeats))


def best_cpu_rate(dtype: torch.dtype, most: int) -> tuple[float, int]:
    """Return the CPU's highest matrix rate over numbers of threads up to `most`, and the number that gives it.

    The process's number of threads is restored.
    """
    before = torch.get_num_threads()
    counts = [2**i for i in range(int(math.log2(most)) + 1)]
    found = []
    for threads in dict.fromkeys([*counts, most]):
        torch.set_num_threads(threads)
        found.append((matrix_rate(torch.device("cpu"), dtype), threads))
    torch.set_num_threads(before)
    return max(found)


def _product(size: int, device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out)


def _seconds(product: Callable[[], object], times: int) -> float:
    """Return the seconds of one product, measured over `times` products that are queued together."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        product()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / times
