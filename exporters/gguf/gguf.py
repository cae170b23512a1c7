"""The export format `gguf`, one file for llama.cpp with every layer in the storage type that was searched."""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch

from ...spaces.levels.ggml.ggml_quantizer import version
from ...spaces.levels.sizes import gguf
from ...spaces.model.checkpoint import Checkpoint
from ...spaces.model.dense_model import DenseModel
from ..artifact.appearing import appearing
from ..artifact.compression import Compression, default_device
from ..artifact.limits import byte_limit, check_limit, check_rule
from ..artifact.model_card import write_card
from ..artifact.probe import searched_logits
from ..artifact.record import write_record
from ..artifact.remains import Remains, remains
from ..artifact.stored_names import StoredNames
from ..artifact.tensor_files import PlannedTensor
from ..artifact.tensor_plan import plan_tensors
from ..artifact.winner import Winner
from ..checkpoints.nemotron_checkpoint import PARTS
from .gguf_families import FAMILIES, architecture
from .gguf_file import ROTARY, typed, verify_file, write_file
from .gguf_target import LACKING, Target
from .llama_cpp import FILE, opened

DIVERGENCE = 0.02
"""Largest allowed KL on random tokens, in nats per token; llama.cpp rounds activations to 8 bits."""

_SENTENCE = (
    f"`{FILE}` has every layer in the type of llama.cpp that was searched, quantised by llama.cpp itself."
)


def export_gguf(winner: Winner, output: Path, overwrite: bool) -> list[str]:
    """Write the winner as one GGUF file.

    Three checks follow: every tensor is read back and compared byte for byte, the number of bytes is compared with the
    size rules, and the logits of llama.cpp are compared with those of the model that was searched.

    Returns:
        Lines for the user that say what was written.

    Raises:
        ValueError: the architecture is not supported, or a branch is dropped whose block is kept and llama.cpp cannot
            do without it; a level is not a storage type of llama.cpp; or the file exceeds the budget.
        ModuleNotFoundError: llama-cpp-python is not installed.
        FileExistsError: `output` holds something, and `overwrite` is not set or it is not an export.
        OSError: the written file fails one of the checks.
    """
    version()
    device = default_device()
    checkpoint = winner.checkpoint
    compression = Compression(winner.structure, winner.database, winner.assignment, device)
    left = remains(winner.model, compression, device, _parts(checkpoint))
    left.check_whole("llama.cpp needs both branches of a block of this architecture")
    target = _target(checkpoint, left)
    tensors = typed(
        plan_tensors(checkpoint, compression, left, _dense),
        StoredNames(checkpoint, winner.structure),
        compression,
        left,
        target,
    )
    with appearing(output, winner.sources, overwrite) as folder:
        path = folder / FILE
        lack = write_file(path, tensors, target, winner.base, checkpoint.path)
        inside = verify_file(path, tensors)
        bits = torch.finfo(checkpoint.dtype).bits
        check_rule([tensor.planned for tensor in tensors], compression, gguf, bits, inside)
        searched = sum(tensor.planned.bytes for tensor in tensors if tensor.planned.name != ROTARY)
        zeroed = [f"blocks.{left.kept[block]}.{kind}" for block, kind in target.zeroed.items()]
        check_limit(searched, byte_limit(winner, "gguf"), zeroed)
        divergence = _divergence(path, winner.model, compression, device)
        size = path.stat().st_size
        details = {
            "removed_blocks": left.removed,
            "absent_branches": tuple(left.absent),
            "bytes": size,
            "tensor_bytes": inside,
            "tokenizer": lack or "llama.cpp's",
            "kl_to_searched": divergence,
        }
        if winner.inspect is not None:
            details |= winner.inspect(path)
        write_card(folder, winner, _SENTENCE, len(left.removed), absent=tuple(left.absent))
        write_record(folder, "gguf", winner, details)
    return [
        f"{output / FILE}: {size:,} bytes, {inside:,} of them tensors",
        f"the KL from the searched model to llama.cpp is {divergence:.2g} nats per token, on random tokens",
        *([f"the file has no tokenizer, so it takes only token ids: {lack}"] if lack else []),
        f"next: llama-cli -m {output / FILE}",
    ]


def _parts(checkpoint: Checkpoint) -> Mapping[str, tuple[str, ...]]:
    """Return the names of the modules that are left out with a dropped branch, by kind of branch.

    The mapping is empty if llama.cpp needs both branches in every block of this architecture.
    """
    family = FAMILIES.get(checkpoint.config.model_type)
    return PARTS if family is not None and family.lacking else {}


def _target(checkpoint: Checkpoint, left: Remains) -> Target:
    """Describe the model that is written: its configuration, its architecture and the branches that blocks lack."""
    config = copy.deepcopy(checkpoint.config)
    config.num_hidden_layers = len(left.kept)
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = [kinds[i] for i in left.kept]
    found = architecture(config)
    units = (unit.split(".") for unit in left.absent)
    lacking = {left.kept.index(int(index)): kind for _, index, kind in units}
    return Target(config, LACKING if lacking else found, lacking)


def _dense(compression: Compression, dense: PlannedTensor) -> list[PlannedTensor]:
    """Leave the dense weight in the plan; `typed` puts the level in its place.

    `typed` needs the names in the model to find llama.cpp's names, and a file may store a layer under another name than
    the model has (GPT-NeoX's head).
    """
    del compression
    return [dense]


def _divergence(path: Path, source: DenseModel, compression: Compression, device: torch.device) -> float:
    """Return the mean KL from the searched model to the file run by llama.cpp, in nats, over a few random tokens.

    Raises:
        OSError: the divergence is above `DIVERGENCE` or not a number.
    """
    tokens_BT, meant_PV = searched_logits(source, compression, device)
    with opened(path, tokens_BT.shape[1]) as model:
        found_PV = model.logits(tokens_BT[0].tolist()).double().log_softmax(-1)
    meant_PV = meant_PV.double().cpu().log_softmax(-1)
    found = float((meant_PV.exp() * (meant_PV - found_PV)).sum(-1).mean())
    if not found <= DIVERGENCE:
        raise OSError(
            f"llama.cpp computes another model than was searched: the KL is {found:.3g} nats per token, above the allowed "
            f"{DIVERGENCE}; export with --format hf"
        )
    return found
