"""The export format `hf`: dense Hugging Face checkpoints with the compressed values of the weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...spaces.levels.sizes import SizeRule
from ...spaces.model.dense_model import DenseModel
from ...spaces.profile_file import ProfileFile
from ...spaces.storage.database import LevelDatabase
from ..artifact.compression import Compression
from ..artifact.remains import Remains
from ..artifact.tensor_files import PlannedTensor
from ..artifact.winner import Winner
from .model_folder import WrittenModel, write_model


class DenseLayout:
    """The `Layout` of dense weights in the source's types.

    The size of the files is not checked, because it does not depend on the levels.
    """

    name = "hf"
    sentence = "The weights are dense: they have the compressed values, not the compressed size."
    needs: Mapping[str, str] = {}
    rule: SizeRule | None = None
    budget: str | None = None
    left_out: Mapping[str, tuple[str, ...]] = {}
    companions: tuple[Path, ...] = ()

    def store(self, compression: Compression, dense: PlannedTensor) -> list[PlannedTensor]:
        """Return the dense weight as the only tensor of the layer."""
        del compression
        return [dense]

    def configure(self, config: dict[str, Any], compression: Compression, left: Remains) -> dict[str, Any]:
        """Return the configuration unchanged."""
        del compression, left
        return config

    def open(self, folder: Path, trust_remote_code: bool) -> DenseModel:
        """Open the written folder as a dense model."""
        return DenseModel.open(folder, trust_remote_code=trust_remote_code)


def export_dense(
    model: DenseModel,
    database: LevelDatabase | None,
    assignment: Mapping[str, str],
    output: Path,
    *,
    profile: ProfileFile | None = None,
    device: str | torch.device | None = None,
    shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> WrittenModel:
    """Write a dense checkpoint of an assignment that does not come from a run.

    The errors are those of `write_model`.

    Args:
        model: the dense model that is the source.
        database: level database with the assigned levels; None if only `drop` is assigned.
        assignment: maps layer path to label; layers that are not named are dense.
        output: path of the folder to make.
        profile: profile for the model card and the record; None if there is none.
        device: device on which levels are unpacked and logits compared; None takes a GPU if there is one.
        shard_bytes: most bytes of tensors in one file; a tensor that is larger gets a file of its own.
        overwrite: whether to replace an earlier export at `output`.
        trust_remote_code: whether to run Python code that comes with the checkpoint.
    """
    known = profile or ProfileFile({})
    winner = Winner(model, database, assignment, known, trust_remote_code=trust_remote_code)
    return write_model(
        winner, DenseLayout(), output, device=device, shard_bytes=shard_bytes, overwrite=overwrite
    )


def export_hf(winner: Winner, output: Path, overwrite: bool) -> list[str]:
    """Write the winner with dense weights; return lines that say what was written."""
    written = write_model(winner, DenseLayout(), output, overwrite=overwrite)
    return [
        f"{output}: {written.bytes:,} bytes of dense weights in {winner.checkpoint.dtype}",
        *written.lines(winner),
        f"next: AutoModelForCausalLM.from_pretrained({str(output)!r})",
    ]
