"""Quantization with llama.cpp's own quantiser, from the library in the package llama-cpp-python."""

import ctypes
import importlib.metadata
import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from .ggml_types import Blocks

_PACKAGE = "llama_cpp"
_REMEDY = "install paretopress[gguf], which compiles llama.cpp"
_LEAST = 1e-6
"""Least importance of an input, as a fraction of the mean.

llama.cpp stores zeros for blocks whose importance is zero, but text other than the calibration text may use their inputs.
"""

_FLOATS = ctypes.POINTER(ctypes.c_float)


def quantize(weight_OI: Tensor, blocks: Blocks, importance_I: Tensor | None) -> Tensor:
    """Quantise a weight to a storage type of llama.cpp, on the CPU with as many threads as PyTorch uses.

    Args:
        weight_OI: weight (O, I) whose rows are whole blocks.
        blocks: storage type of llama.cpp.
        importance_I: weights of the inputs' errors (I,), as in llama.cpp's importance matrix: mean squares of the
            inputs, up to a factor. None or all zeros quantises without an importance matrix.

    Returns:
        The stored rows (O, bytes of a row) in uint8, on the weight's device.

    Raises:
        ModuleNotFoundError: the package llama-cpp-python is not installed.
        ValueError: the storage type needs importances and none are given.
    """
    library = _library()
    if importance_I is None and library.ggml_quantize_requires_imatrix(blocks.number):
        raise ValueError(
            f"llama.cpp makes {blocks.name} only of layers whose inputs are calibrated; leave the level out for "
            "embeddings and head, for example with space.units.min"
        )
    weight_OI = weight_OI.detach().float().contiguous()
    source, (rows, inputs) = weight_OI.cpu(), weight_OI.shape
    stored_OR = torch.empty((rows, blocks.row_bytes(inputs)), dtype=torch.uint8)
    importance = None if importance_I is None or not importance_I.any() else _normalised(importance_I)
    library.ggml_quantize_init(blocks.number)
    threads = torch.get_num_threads()

    def part(edges: tuple[int, int]) -> None:
        first, last = edges
        library.ggml_quantize_chunk(
            blocks.number,
            ctypes.cast(source.data_ptr(), _FLOATS),
            stored_OR.data_ptr(),
            first * inputs,
            last - first,
            inputs,
            None if importance is None else ctypes.cast(importance.data_ptr(), _FLOATS),
        )

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, pairwise(sorted({rows * n // threads for n in range(threads + 1)}))))
    return stored_OR.to(weight_OI.device)


def version() -> str:
    """Return the version of llama-cpp-python, whose quantisers may change between versions.

    Raises:
        ModuleNotFoundError: the package llama-cpp-python is not installed.
    """
    try:
        return importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"levels of llama.cpp's types need llama-cpp-python; {_REMEDY}", name=_PACKAGE
        ) from error


def _normalised(importance_I: Tensor) -> Tensor:
    """Scale importances to a mean of about one, because the squares of sums over all tokens would overflow."""
    importance_I = importance_I.detach().double()
    importance_I = importance_I.clamp(min=_LEAST * float(importance_I.mean()))
    return (
        (importance_I / importance_I.mean().clamp(min=torch.finfo(torch.float64).tiny))
        .float()
        .cpu()
        .contiguous()
    )


@cache
def _library() -> ctypes.CDLL:
    """Load the library ggml-base of llama-cpp-python."""
    spec = importlib.util.find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    suffix = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
    found = [path for folder in folders or () for path in Path(folder).glob(f"lib/*ggml-base.{suffix}")]
    if not found:
        raise ModuleNotFoundError(
            f"levels of llama.cpp's types need the library ggml-base of llama-cpp-python; {_REMEDY}",
            name=_PACKAGE,
        )
    library = ctypes.CDLL(str(found[0]))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, _FLOATS, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, _FLOATS,
    ]  # fmt: skip
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    return library
