"""How the memory that is free is shared out: matrices that stay, blocks that stream, hidden states of a tile."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...spaces.levels.labels import parse_label, stored_bits
from ...spaces.model.structure import Block, Ends, Structure
from .block_weights import Residency

STATES = 131_072
"""Positions of hidden states that a tile should have room for: one visit's arithmetic then covers its transfer."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What goes where.

    Attributes:
        budget: bytes that may be used on each device, beyond what was in use already.
        states: bytes for hidden states.
        residency: where each block's matrices stay.
        blocks: number of blocks.
    """

    budget: int
    states: int
    residency: Residency
    blocks: int

    def describe(self) -> str:
        """One line for people."""
        stay, host = len(self.residency.device), len(self.residency.host)
        fates = {"stay": stay, "pinned": host, "on disk": self.blocks - stay - host}
        blocks = ", ".join(f"{count} {fate}" for fate, count in fates.items() if count)
        return f"blocks: {blocks}; states {self.states / 1e9:.1f} of {self.budget / 1e9:.1f} GB"


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that one evaluation needs whatever is kept.

    Attributes:
        working: activations of a block, logits of a chunk, and what recordings of blocks keep.
        candidate: hidden states of one candidate's micro-batch.
        position: hidden state of one position.
    """

    working: int
    candidate: int
    position: int


def share_out(
    budget: int,
    host: int,
    needs: Needs,
    structure: Structure,
    labels: Mapping[str, tuple[str, ...]],
    dtype: torch.dtype,
    slice_size: int,
    devices: int = 1,
) -> MemoryPlan:
    """Keep every block if a slice's states still fit beside them, else as many as a full tile leaves room for.

    Args:
        budget: free bytes of the device, or of each of several.
        host: bytes that may be pinned; 0 where the device is the host.
        needs: of one evaluation.
        structure: of the model.
        labels: of each layer, besides the dense weight.
        dtype: of ready matrices.
        slice_size: profiles that are evaluated together.
        devices: how many share the blocks, as evenly as `spread` says.

    Raises:
        ValueError: the budget is less than one block, its work and two micro-batches need.
    """
    ready = {block.index: _ready(block, labels, dtype) for block in structure.blocks}
    packed = {block.index: _packed(block, labels, dtype) for block in structure.blocks}
    least_states = 4 * needs.candidate
    slice_states = 2 * (slice_size + 1) * needs.candidate
    neighbours = [
        {index: ready[index] for index in ready if spread(index, len(ready), devices) == device}
        for device in range(devices)
    ]
    # Levels of embedding and head stay on the device; packed matrices arrive beside those that are used.
    working = needs.working + _ready(structure.ends, labels, dtype, dense=False) + 2 * max(packed.values())
    everything = working + max(sum(sizes.values()) for sizes in neighbours)
    if everything + slice_states <= budget:
        return MemoryPlan(budget, budget - everything, Residency(frozenset(ready)), len(ready))
    visit = working + max(ready.values())
    spare = budget - visit
    if spare < least_states:
        raise ValueError(
            f"evaluation.memory leaves {budget:,} bytes but one block, its work and two micro-batches need "
            f"{visit + least_states:,}; raise it, or lower evaluation.micro_batch or chunk"
        )
    states = max(least_states, min(spare, 2 * max(STATES * needs.position, least_states)))
    on_device = frozenset[int]().union(*(_first(sizes, spare - states) for sizes in neighbours))
    on_host = _first({i: 2 * size for i, size in packed.items() if i not in on_device}, host)
    states = spare - max(sum(sizes[i] for i in sizes if i in on_device) for sizes in neighbours)
    return MemoryPlan(budget, states, Residency(on_device, on_host), len(ready))


def spread(index: int, blocks: int, devices: int) -> int:
    """The device of a block: each has as many neighbours as any other, or one less."""
    return index * devices // blocks


def _first(sizes: Mapping[int, int], room: int) -> frozenset[int]:
    """The first of these that fit."""
    chosen = set()
    for index, size in sizes.items():
        if size > room:
            break
        chosen.add(index)
        room -= size
    return frozenset(chosen)


def _ready(
    part: Block | Ends, labels: Mapping[str, tuple[str, ...]], dtype: torch.dtype, *, dense: bool = True
) -> int:
    """Bytes of a part's matrices at every level, unpacked, and of the dense ones."""
    weights = sum(
        linear.in_features * linear.out_features * (dense + len(labels.get(linear.path, ())))
        for linear in part.linears
    )
    return weights * dtype.itemsize


def _packed(block: Block, labels: Mapping[str, tuple[str, ...]], dtype: torch.dtype) -> int:
    """Bytes of the block's matrices at every level, packed, and dense."""
    bits = 0
    for linear in block.linears:
        shape = (linear.out_features, linear.in_features)
        schemes = [parse_label(label) for label in labels.get(linear.path, ())]
        bits += sum(stored_bits(scheme, shape) for scheme in schemes)
        bits += 8 * dtype.itemsize * shape[0] * shape[1]
    return bits // 8
