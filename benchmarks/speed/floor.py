"""The floor under a population's time: the arithmetic that shared prefixes leave, and the chip's matrix rate.

Counted are two operations per weight and position of every linear layer, the causal half of the products of
attention, and the head, once for every distinct (prefix of blocks, block); nothing else is charged.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from paretopress.spaces.model.structure import Block, Structure

ENOUGH = 0.1
"""Seconds that one product on the CPU takes at least."""

Assignment = Mapping[str, str]
"""Layer path to label; what is not named is dense."""


@dataclass(frozen=True)
class Work:
    """Floating-point operations.

    Attributes:
        linear: in the linear layers of the blocks.
        attention: in the two products of attention.
        head: in the head.
        apart: in the blocks, if every candidate ran them by itself.
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
        """All that blocks do."""
        return self.linear + self.attention

    @property
    def total(self) -> int:
        """Blocks and head."""
        return self.blocks + self.head

    @property
    def left(self) -> float:
        """The share of the blocks' work that sharing prefixes leaves."""
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
    """What has to be computed for a population on `sequences` sequences of `length` tokens.

    Args:
        structure: structure of the model.
        width: query heads times their size, which is what attention's products cost per pair of positions.
        candidates: models; equal ones are counted once.
        sequences: that all candidates are measured on.
        length: tokens of each; the last position's logits are not needed.
        untaught: sequences among them on which the dense model is not known either.
    """
    known = _sequence(structure, width, candidates, length)
    unknown = _sequence(structure, width, [*candidates, {}], length) if untaught else known
    return known * (sequences - untaught) + unknown * untaught


def _sequence(structure: Structure, width: int, candidates: Sequence[Assignment], length: int) -> Work:
    """`work_left` on one sequence, the dense model a candidate like any other."""
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
    """Operations of one block on one sequence: linear layers, attention."""
    linear, attention = 0, 0
    for branch in block.branches:
        if all(labels.get(layer.path) == "drop" for layer in branch.linears):
            continue
        linear += sum(2 * layer.in_features * layer.out_features * length for layer in branch.linears)
        if branch.kind == "attention":
            attention += 2 * width * length * length
    return linear, attention


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of square matrix products, the median over several.

    On a GPU 8192^3 products; on the CPU products that take at least `ENOUGH` seconds with the threads that are set.
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
    """The CPU's matrix rate at the thread count that gives the most, and that count; the setting is put back."""
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
    """Seconds of one product, `times` of them queued together."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        product()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / times
