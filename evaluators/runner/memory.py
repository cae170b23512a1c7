"""The division of free memory among weight matrices that stay, blocks that stream, and hidden states."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...spaces.levels.labels import parse_label, stored_bits
from ...spaces.model.structure import Block, Ends, Structure
from .block_weights import Residency

STATES = 131_072
"""Number of positions whose hidden states a tile should have room for.

With so many, computing a block takes at least as long as bringing its matrices to the device.
"""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The plan of which weights stay in which memory, and of how much memory hidden states may take.

    Attributes:
        budget: bytes that may be used on each device, beyond what was in use already.
        states: bytes for the hidden states of a tile, which is the candidates and micro-batches that run together.
        residency: places where the matrices of each block stay.
        blocks: number of blocks of the model.
    """

    budget: int
    states: int
    residency: Residency
    blocks: int

    def describe(self) -> str:
        """Describe in one line where the blocks stay and how much memory hidden states have."""
        stay, host = len(self.residency.device), len(self.residency.host)
        fates = {"on the device": stay, "pinned": host, "on disk": self.blocks - stay - host}
        blocks = ", ".join(f"{count} {fate}" for fate, count in fates.items() if count)
        return f"blocks: {blocks}; hidden states: {self.states / 1e9:.1f} of {self.budget / 1e9:.1f} GB"


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that evaluations need, whatever is kept in memory.

    Attributes:
        working: bytes of the activations of a block, the logits of a chunk, and the weights that recordings keep.
        candidate: bytes of the hidden states of one micro-batch of one candidate.
        position: bytes of the hidden state at one position.
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
    """Divide the free memory: plan which matrices stay in which memory, and how much hidden states may take.

    All blocks stay on the device if there is also room for the hidden states of one micro-batch of all `slice_size`
    profiles. Otherwise hidden states get enough room for about `STATES` positions, and as many blocks stay on the
    device as fit into the rest.

    Args:
        budget: free bytes of the device, or of each device if there are several.
        host: bytes of host memory that may be pinned; 0 where the device is the host.
        needs: bytes that evaluations need, whatever is kept.
        structure: structure of the model.
        labels: labels of each layer by path, besides the dense weight.
        dtype: type of unpacked matrices.
        slice_size: number of profiles that are evaluated together.
        devices: number of devices that share the blocks, as evenly as `spread` divides them.

    Returns:
        The plan, the same for every device.

    Raises:
        ValueError: the budget is less than the bytes that one block, its computation and two micro-batches need.
    """
    ready = {block.index: _ready(block, labels, dtype) for block in structure.blocks}
    packed = {block.index: _packed(block, labels, dtype) for block in structure.blocks}
    least_states = 4 * needs.candidate
    slice_states = 2 * (slice_size + 1) * needs.candidate
    neighbours = [
        {index: ready[index] for index in ready if spread(index, len(ready), devices) == device}
        for device in range(devices)
    ]
    # Levels of embedding and head always stay on the device. The packed matrices of the next block arrive while those
    # of the current one are still there.
    working = needs.working + _ready(structure.ends, labels, dtype, dense=False) + 2 * max(packed.values())
    everything = working + max(sum(sizes.values()) for sizes in neighbours)
    if everything + slice_states <= budget:
        return MemoryPlan(budget, budget - everything, Residency(frozenset(ready)), len(ready))
    visit = working + max(ready.values())
    spare = budget - visit
    if spare < least_states:
        raise ValueError(
            f"evaluation.memory leaves {budget:,} bytes, but one block, its computation and two micro-batches need "
            f"{visit + least_states:,}; raise evaluation.memory, or lower evaluation.micro_batch or evaluation.chunk"
        )
    states = max(least_states, min(spare, 2 * max(STATES * needs.position, least_states)))
    on_device = frozenset[int]().union(*(_first(sizes, spare - states) for sizes in neighbours))
    on_host = _first({i: 2 * size for i, size in packed.items() if i not in on_device}, host)
    states = spare - max(sum(sizes[i] for i in sizes if i in on_device) for sizes in neighbours)
    return MemoryPlan(budget, states, Residency(on_device, on_host), len(ready))


def spread(index: int, blocks: int, devices: int) -> int:
    """Return the index of a block's device; each device gets equally many consecutive blocks, or one less."""
    return index * devices // blocks


def _first(sizes: Mapping[int, int], room: int) -> frozenset[int]:
    """Return as many keys, from the first one on, as have sizes that fit into `room` bytes together."""
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
    """Compute the bytes that a part's matrices take unpacked, at all levels and, if `dense` is set, also dense."""
    weights = sum(
        linear.in_features * linear.out_features * (dense + len(labels.get(linear.path, ())))
        for linear in part.linears
    )
    return weights * dtype.itemsize


def _packed(block: Block, labels: Mapping[str, tuple[str, ...]], dtype: torch.dtype) -> int:
    """Compute the bytes that a block's matrices take in the form in which they travel: packed levels, and dense."""
    bits = 0
    for linear in block.linears:
        shape = (linear.out_features, linear.in_features)
        schemes = [parse_label(label) for label in labels.get(linear.path, ())]
        bits += sum(stored_bits(scheme, shape) for scheme in schemes)
        bits += 8 * dtype.itemsize * shape[0] * shape[1]
    return bits // 8
