"""The export format `llama-quantize`: a script and a file of tensor types, for users who quantise with llama.cpp.

References:
    llama.cpp, tools/quantize/quantize.cpp and src/llama-quant.cpp.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ...spaces.nearest import nearest
from ...spaces.storage.files import write_atomic
from ..artifact.appearing import appearing
from ..artifact.compression import Compression, default_device
from ..artifact.model_card import write_card
from ..artifact.record import write_record
from ..artifact.remains import Remains, remains
from ..artifact.winner import Winner
from ..gguf.gguf_families import FAMILIES
from ..gguf.gguf_names import tensor_names

SCRIPT, TYPES = "quantize.sh", "tensor-types.txt"

_DENSE = {torch.float16: "f16", torch.bfloat16: "bf16"}

_IMPORTANT = ("iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs")
"""Storage types that llama-quantize makes only with an importance matrix."""

# llama-quantize applies the types of tensors only to quantised files. Some releases ignore a tensor's type that equals
# the type of the file, and then choose one from the mixture of that file type. The mixture of Q8_0 has only this type.
_FILE_TYPE = "Q8_0"

_SENTENCE = (
    f"`sh {SCRIPT} MODEL.gguf OUTPUT.gguf --imatrix FILE` runs llama-quantize (of 2026 or later) on a 16-bit GGUF file "
    f"of the model. `{TYPES}` has the type of every layer, under the block numbers that the written model has. "
    "llama-quantize makes its own weights; the figures below are of the weights of paretopress, which were made with an "
    "importance matrix of the calibration data. Make an importance matrix of your own with llama-imatrix."
)


def export_llama_quantize(winner: Winner, output: Path, overwrite: bool) -> list[str]:
    """Write the winner's recipe.

    Returns:
        Lines for the user that say how the recipe is used.

    Raises:
        ValueError: llama.cpp's names for the architecture are not known, a level is not a storage type of llama.cpp, a
            row does not fill whole blocks of its type, a branch is dropped whose block is kept, or blocks are dropped
            of a model whose kind of attention llama.cpp derives from the number of the block.
        FileExistsError: `output` holds something, and `overwrite` is not set or it is not an export.
    """
    device = default_device()
    compression = Compression(winner.structure, winner.database, winner.assignment, device)
    types = _types(winner, compression)
    left = remains(winner.model, compression, device, {})
    _check_blocks(winner, left)
    layers = _layers(winner, left, types)
    ends = winner.structure.ends
    options = [f"--token-embedding-type {types[ends.embedding.path]}"]
    options += [f"--output-tensor-type {types[ends.head.path]}"]
    options += [f"--prune-layers {','.join(map(str, left.removed))}"] if left.removed else []
    with appearing(output, winner.sources, overwrite) as folder:
        lines = (f"^{re.escape(name)}$={kind}\n" for name, kind in layers.items())
        write_atomic(folder / TYPES, "".join(lines))
        write_atomic(folder / SCRIPT, _script(options))
        write_card(folder, winner, _SENTENCE, len(left.removed))
        write_record(folder, "llama-quantize", winner, {"removed_blocks": left.removed})
    without = sorted(set(_IMPORTANT) & set(types.values()))
    return [
        f"{output / SCRIPT}: llama-quantize's arguments for {len(layers)} layers, embeddings and head, "
        f"{len(left.removed)} blocks left out",
        "llama-quantize makes its own weights, not those that were measured, which had an importance matrix of the "
        "calibration data; make an importance matrix of your own with llama-imatrix",
        *([f"llama-quantize writes {', '.join(without)} only with --imatrix"] if without else []),
        *(["the recipe does not hold the weights that the refit changed"] if winner.refitted else []),
        f"next: sh {shlex.quote(str(output / SCRIPT))} MODEL.gguf OUTPUT.gguf --imatrix IMATRIX.gguf",
    ]


def _types(winner: Winner, compression: Compression) -> dict[str, str]:
    """Return llama.cpp's type of every linear layer, the embedding and the head, by path of the layer."""
    dense = _DENSE.get(winner.checkpoint.dtype, "f32")
    found = {}
    for path, linear in compression.linears.items():
        label = compression.levels.get(path)
        multiple = compression.storage(path).weights if label else 1
        if linear.in_features % multiple:
            raise ValueError(
                f"{path} takes {label!r}, which needs a multiple of {multiple} inputs, but has {linear.in_features}, so "
                "llama-quantize would take another type; use a level with blocks of 32, such as q4_0"
            )
        found[path] = label or dense
    return found


def _check_blocks(winner: Winner, left: Remains) -> None:
    """Refuse dropped branches and blocks that llama-quantize cannot remove."""
    left.check_whole("llama-quantize removes only whole blocks")
    kinds: Sequence[str] = getattr(winner.checkpoint.config, "layer_types", None) or ()
    if kinds and [kinds[i] for i in left.kept] != list(kinds[: len(left.kept)]):
        raise ValueError(
            f"blocks {', '.join(map(str, left.removed))} are dropped, but llama.cpp derives the kind of attention of a "
            "block from its number; export with --format hf"
        )


def _layers(winner: Winner, left: Remains, types: Mapping[str, str]) -> dict[str, str]:
    """Return the type of every linear layer in the kept blocks, by llama.cpp's name with the block's new number."""
    kind = winner.checkpoint.config.model_type
    if kind not in FAMILIES:
        raise ValueError(f"recipes for models of type {kind!r} are not written; {nearest(kind, FAMILIES)}")
    named = tensor_names(FAMILIES[kind].name, len(left.kept))
    ends = {linear.path for linear in winner.structure.ends.linears}
    return {
        named(f"{written}.weight"): types[path] for path, written in left.paths().items() if path not in ends
    }


def _script(options: Sequence[str]) -> str:
    return f"""#!/bin/sh
# Usage: sh {SCRIPT} MODEL.gguf OUTPUT.gguf [--imatrix IMATRIX.gguf] [more options of llama-quantize]
# MODEL.gguf has 16 or 32 bits, as convert_hf_to_gguf.py writes it.
# If llama-quantize is not on the PATH, set the variable LLAMA_QUANTIZE to the path of the program.
# {_FILE_TYPE} is the type of tensors without a type of their own, and the type that llama.cpp will show for the file.
set -eu
model=${{1:?is the GGUF file to quantise}}
output=${{2:?is the GGUF file to write}}
shift 2
exec "${{LLAMA_QUANTIZE:-llama-quantize}}" "$@" \\
    --tensor-type-file "$(dirname "$0")/{TYPES}" \\
    {" ".join(options)} \\
    "$model" "$output" {_FILE_TYPE}
"""
