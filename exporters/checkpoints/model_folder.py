"""Writing of a model as a folder that `transformers` opens, in any layout of the weights.

The files are verified before the folder appears. If the verification fails, no folder appears.
"""

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
    """The way in which a format stores the weights of layers that have a level.

    Attributes:
        name: name of the format.
        sentence: sentence about the weights for the model card.
        needs: packages that read the files, besides transformers, with their versions.
        rule: size rule that the bytes of the written tensors must match; None if there is none.
        budget: the `space.format` whose budgets in bytes the files must keep; None if there is none.
        left_out: maps a kind of branch to the names of those children of a block that are not written if the branch is
            dropped. Dropped branches of other kinds are written as zeros.
        companions: files of this package that are copied into the folder.
    """

    name: str
    sentence: str
    needs: Mapping[str, str]
    rule: SizeRule | None
    budget: str | None
    left_out: Mapping[str, tuple[str, ...]]
    companions: tuple[Path, ...]

    def store(self, compression: Compression, dense: PlannedTensor) -> list[PlannedTensor]:
        """Return the tensors that replace a layer's dense weight; refuse a level that the format cannot hold."""

    def configure(self, config: dict[str, Any], compression: Compression, left: Remains) -> dict[str, Any]:
        """Return the content of `config.json`, made from the dense model's content `config`."""

    def open(self, folder: Path, trust_remote_code: bool) -> DenseModel:
        """Open the written folder as a model with the dense weights that a reader of the files computes."""


@dataclass(frozen=True)
class WrittenModel:
    """The facts about a written model.

    Attributes:
        path: folder of the export.
        bytes: size of the safetensors files in bytes.
        tensor_bytes: size of the tensors in the files in bytes, without the headers; budgets in bytes count this.
        removed: indices, in the source, of the removed blocks; the other blocks are renumbered.
        zeroed: unit names of the dropped branches that are written with zeros in all linear layers and biases.
        absent: unit names of the dropped branches that are left out of blocks that are kept.
    """

    path: Path
    bytes: int
    tensor_bytes: int
    removed: tuple[int, ...]
    zeroed: tuple[str, ...]
    absent: tuple[str, ...]

    def lines(self, winner: Winner) -> list[str]:
        """Return lines for the user about refitted weights, removed blocks and dropped branches."""
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
    """Write a model with the weights of the winner's assignment, under the source's names.

    A block whose branches are all dropped is removed, and the later blocks are renumbered. Such a block stays if it
    changes the hidden states even without its branches (norms on the residual stream). A dropped branch of a block
    that stays is left out or written as zeros, as `layout.left_out` says.

    The files are read back from the disk and verified:

    - every tensor, byte for byte;
    - every weight that a reader computes from the tensors, bit for bit, against the level;
    - the logits of a few tokens, against those of the block runner;
    - the size of the tensors, against the layout's size rule and the budget, where there are any.

    The folder appears complete or not at all.

    Memory: one tensor while writing; one block, the embedding and the head for the logits.

    Args:
        winner: model, levels and profile to write.
        layout: format in which the weights are stored.
        output: path of the folder to make.
        device: device on which levels are unpacked and logits compared; None takes a GPU if there is one.
        shard_bytes: most bytes of tensors in one file; a tensor that is larger gets a file of its own.
        overwrite: whether to replace an earlier export at `output`.

    Raises:
        ValueError: a layer is unknown, a branch is dropped in part, no block is kept, a level does not fit the
            format, the files exceed the budget, or the architecture does not allow its blocks to be renumbered.
        FileExistsError: `check_output` refuses `output`, for example because it holds other files.
        OSError: the files that were read back differ from what should have been written.
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
