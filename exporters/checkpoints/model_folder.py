"""Writes a model as a folder that `transformers` opens, whatever the layout of its weights: verified, or not at all."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ...spaces.levels.sizes import SizeRule
from ...spaces.model.dense_model import DenseModel
from ...spaces.storage.files import write_json
from ..artifact.appearing import appearing, copy_companions
from ..artifact.compression import Compression, default_device
from ..artifact.limits import byte_limit, check_limit, check_rule
from ..artifact.model_card import write_card
from ..artifact.probe import compare_logits
from ..artifact.record import write_record
from ..artifact.remains import Remains, remains
from ..artifact.shortening import shortened_config
from ..artifact.tensor_files import PlannedTensor, tensor_bytes, verify_tensors, write_tensors
from ..artifact.tensor_plan import plan_tensors
from ..artifact.winner import Winner
from .written_weights import verify_weights


class Layout(Protocol):
    """How the weights of layers with a level lie in the files.

    Attributes:
        name: of the format.
        sentence: what the model card says of the weights.
        needs: package to the versions that read the files, besides transformers.
        rule: bytes of one layer, if the files of this format are what byte budgets count.
        budget: the `space.format` whose budgets in bytes the files must keep.
        left_out: kind of a dropped branch to the block's children that are not written; other kinds become zeros.
        companions: files of this package that go along.
    """

    name: str
    sentence: str
    needs: Mapping[str, str]
    rule: SizeRule | None
    budget: str | None
    left_out: Mapping[str, tuple[str, ...]]
    companions: tuple[Path, ...]

    def store(self, compression: Compression, dense: PlannedTensor) -> list[PlannedTensor]:
        """The tensors that stand for a layer's dense weight; refuses a level that the format cannot hold."""

    def configure(self, config: dict[str, Any], compression: Compression, left: Remains) -> dict[str, Any]:
        """The content of `config.json`, from that of the dense model."""

    def open(self, folder: Path, trust_remote_code: bool) -> DenseModel:
        """Open what was written, with dense weights as its readers see them."""


@dataclass(frozen=True)
class WrittenModel:
    """What was written.

    Attributes:
        path: folder of the export.
        bytes: of the safetensors files.
        tensor_bytes: of the tensors in them, without headers: what byte budgets count.
        removed: indices, in the source, of the blocks that are gone; the others are renumbered.
        zeroed: dropped branches, named as units, that remain with zeros in all their linear layers and biases.
        absent: dropped branches, named as units, of which nothing remains in blocks that do.
    """

    path: Path
    bytes: int
    tensor_bytes: int
    removed: tuple[int, ...]
    zeroed: tuple[str, ...]
    absent: tuple[str, ...]

    def lines(self, winner: Winner) -> list[str]:
        """What a person should know besides the size."""
        found = []
        if winner.refitted:
            figures = (f"held-out {name} {value:.6g}" for name, value in winner.profile.heldout.items())
            found.append(f"refitted weights; {', '.join(figures)}")
        if self.removed:
            blocks = ", ".join(map(str, self.removed))
            found.append(f"{len(self.removed)} of {len(winner.structure.blocks)} blocks removed: {blocks}")
        if self.zeroed:
            found.append(f"dropped branches written as zeros: {', '.join(self.zeroed)}")
        if self.absent:
            found.append(f"dropped branches left out: {', '.join(self.absent)}")
        return found


def write_model(
    winner: Winner,
    layout: Layout,
    output: Path,
    *,
    device: str | torch.device | None = None,
    shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
) -> WrittenModel:
    """Write a model whose weights are those of the winner's assignment, under the source's names.

    A block whose branches are all dropped is removed and the next ones take its number; where a block without
    its branches still changes what passes (norms on the residual stream), it stays. A dropped branch of a block
    that stays becomes zeros, or is left out where the layout says so. What was written is read back from the disk:
    every tensor is compared byte for byte, every weight that a reader makes of them with the level's own, bit for
    bit, the logits on a few tokens with the block runner's, and the bytes with the size rules. The folder appears
    whole or not at all.

    Memory: one tensor while writing; one block, embedding and head for the logits.

    Args:
        winner: what to write.
        layout: format in which the weights are stored.
        output: the folder to make.
        device: where levels are unpacked and logits compared; None takes a GPU if there is one.
        shard_bytes: weights are split into files of at most this size, or of one tensor.
        overwrite: replace an earlier export at `output`.

    Raises:
        ValueError: an unknown layer, a branch dropped in part, nothing left, a level that the format cannot hold,
            more bytes than the budget, or an architecture whose blocks cannot be renumbered.
        FileExistsError: `output` holds something, and `overwrite` is not set or it is no export.
        OSError: what was read back differs from what was meant.
    """
    device = default_device(device)
    checkpoint = winner.checkpoint
    compression = Compression(winner.structure, winner.database, winner.assignment, device)
    left = remains(winner.model, compression, device, layout.left_out)
    config = shortened_config(checkpoint, len(winner.structure.blocks), left.kept)
    config = layout.configure(config, compression, left)
    tensors = plan_tensors(checkpoint, compression, left, layout.store)
    with appearing(output, winner.sources, overwrite) as folder:
        copy_companions(checkpoint.path, folder)
        for path in layout.companions:
            shutil.copyfile(path, folder / path.name)
        write_json(folder / "config.json", config)
        size = write_tensors(folder, tensors, shard_bytes)
        verify_tensors(folder, tensors)
        written = layout.open(folder, winner.trust_remote_code)
        verify_weights(written.checkpoint, compression, left)
        compare_logits(winner.model, compression, written, device)
        inside = tensor_bytes(folder)
        if layout.rule is not None:
            bits = torch.finfo(checkpoint.dtype).bits
            check_rule(tensors, compression, layout.rule, bits, inside)
        if layout.budget is not None:
            check_limit(inside, byte_limit(winner, layout.budget), left.zeroed)
        details = {
            "removed_blocks": left.removed,
            "zeroed_branches": left.zeroed,
            "absent_branches": tuple(left.absent),
            "bytes": size,
            "tensor_bytes": inside,
            "needs": dict(layout.needs),
        }
        if winner.inspect is not None:
            details |= winner.inspect(written)
        write_card(folder, winner, layout.sentence, len(left.removed), left.zeroed, tuple(left.absent))
        write_record(folder, layout.name, winner, details)
    return WrittenModel(output, size, inside, left.removed, left.zeroed, tuple(left.absent))
