"""Running of GGUF files by llama.cpp, through the package llama-cpp-python.

Shapes: T positions, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...search.jobs.measure import Figures, measure_logits
from ...search.run.configuration import RunConfig
from ...spaces.levels.ggml.ggml_quantizer import version

FILE = "model.gguf"
"""Name of the GGUF file in the folder of an export."""


class LlamaCpp:
    """A GGUF file that llama.cpp has opened.

    Args:
        path: path of the GGUF file.
        length: largest number of tokens of a sequence.

    Raises:
        ModuleNotFoundError: llama-cpp-python is not installed.
        ValueError: llama.cpp does not load the file.
    """

    def __init__(self, path: Path, length: int) -> None:
        try:
            from llama_cpp import Llama
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "llama.cpp runs through llama-cpp-python; install paretopress[gguf], which compiles it",
                name="llama_cpp",
            ) from error
        threads = torch.get_num_threads()  # llama.cpp itself counts cores that this process may not use
        try:
            self._model: Any = Llama(
                str(path),
                n_ctx=length,
                n_batch=length,
                n_ubatch=length,
                n_threads=threads,
                n_threads_batch=threads,
                logits_all=True,
                verbose=False,
            )
        except ValueError as error:
            raise ValueError(
                f"llama.cpp (llama-cpp-python {version()}) does not load {path.name}; check the file, or export with "
                "--format hf"
            ) from error

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Return the logits after every token of one sequence, float32 (T, V)."""
        self._model.reset()
        self._model.eval(list(tokens))
        return torch.from_numpy(self._model.scores[: len(tokens)].copy())

    @property
    def vocabulary(self) -> int:
        """The number of tokens of the model."""
        return int(self._model.n_vocab())

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens around it."""
        found: list[int] = self._model.tokenize(text.encode(), add_bos=False, special=False)
        return found

    def close(self) -> None:
        """Free the memory of the model."""
        self._model.close()


@contextmanager
def opened(path: Path, length: int) -> Iterator[LlamaCpp]:
    """Open a GGUF file and close it at the end of the `with` block; arguments and errors are those of `LlamaCpp`."""
    model = LlamaCpp(path, length)
    try:
        yield model
    finally:
        model.close()


def measure_file(config: RunConfig, path: Path, data: str) -> Figures:
    """Measure the divergence of a GGUF file from the dense model, and its perplexity, as llama.cpp computes it.

    Args:
        config: configuration that names the dense model and the text.
        path: path of the GGUF file.
        data: name of the data set, `calibration`, `validation` or `heldout`.

    Raises:
        ModuleNotFoundError: llama-cpp-python is not installed.
        ValueError: llama.cpp does not load the file, or the file has another vocabulary than the dense model.
    """
    with opened(path, config.data.length) as model:
        return measure_logits(config, path, model.vocabulary, model.logits, data)
