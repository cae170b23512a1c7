"""llama.cpp's own quantiser, from the library that the package llama-cpp-python brings."""

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

from .ggml import Blocks

_PACKAGE = "llama_cpp"
_REMEDY = "install paretopress[gguf], which compiles llama.cpp"
_LEAST = 1e-6
"""Of the mean importance: llama.cpp makes zeros of blocks without any, but text of another kind may use their inputs."""
_FLOATS = ctypes.POINTER(ctypes.c_float)


def quantize(weight_OI: Tensor, blocks: Blocks, importance_I: Tensor | None) -> Tensor:
    """Rows (O, R bytes) of a weight in llama.cpp's storage, uint8, on the weight's device.

    Args:
        weight_OI: float32; rows are whole blocks.
        blocks: llama.cpp's storage type.
        importance_I: how much an input's errors count, as llama.cpp's importance matrix: mean squares of the inputs.

    Raises:
        ModuleNotFoundError: llama-cpp-python is not installed.
        ValueError: the type cannot do without importance.
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
    """Of llama-cpp-python, whose quantisers may change.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        return importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"levels of llama.cpp's types need llama-cpp-python; {_REMEDY}", name=_PACKAGE
        ) from error


def _normalised(importance_I: Tensor) -> Tensor:
    """Of about mean one: sums over all calibration tokens would overflow where they are squared."""
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
