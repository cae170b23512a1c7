"""Dense Hugging Face checkpoints with the compressed values, for everything that loads such checkpoints."""

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
    """Weights in the source's types; sizes are not checked, because they say nothing of the levels."""

    name = "hf"
    sentence = "The weights are dense: they have the compressed values, not the compressed size."
    needs: Mapping[str, str] = {}
    rule: SizeRule | None = None
    budget: str | None = None
    left_out: Mapping[str, tuple[str, ...]] = {}
    companions: tuple[Path, ...] = ()

    def store(self, compression: Compression, dense: PlannedTensor) -> list[PlannedTensor]:
        """The dense weight itself."""
        del compression
        return [dense]

    def configure(self, config: dict[str, Any], compression: Compression, left: Remains) -> dict[str, Any]:
        """The configuration as it is."""
        del compression, left
        return config

    def open(self, folder: Path, trust_remote_code: bool) -> DenseModel:
        """Open the folder as any dense model."""
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
    """`write_model` of an assignment that comes from no run: layer path to label, what is not named is dense."""
    known = profile or ProfileFile({})
    winner = Winner(model, database, assignment, known, trust_remote_code=trust_remote_code)
    return write_model(
        winner, DenseLayout(), output, device=device, shard_bytes=shard_bytes, overwrite=overwrite
    )


def export_hf(winner: Winner, output: Path, overwrite: bool) -> list[str]:
    """Write the winner dense; lines that say what was written."""
    written = write_model(winner, DenseLayout(), output, overwrite=overwrite)
    return [
        f"{output}: {written.bytes:,} bytes of dense weights in {winner.checkpoint.dtype}",
        *written.lines(winner),
        f"next: AutoModelForCausalLM.from_pretrained({str(output)!r})",
    ]
