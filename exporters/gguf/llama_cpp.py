"""What llama.cpp computes of a GGUF file, through the package llama-cpp-python.

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
from ...spaces.levels.ggml_quantizer import version

FILE = "model.gguf"
"""Name of the file in an export's folder."""


class LlamaCpp:
    """A file that llama.cpp has opened.

    Args:
        path: of the file.
        length: most tokens of a sequence.

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
        """After every token of one sequence: float32 (T, V)."""
        self._model.reset()
        self._model.eval(list(tokens))
        return torch.from_numpy(self._model.scores[: len(tokens)].copy())

    @property
    def vocabulary(self) -> int:
        """Tokens that it has."""
        return int(self._model.n_vocab())

    def tokenize(self, text: str) -> list[int]:
        """Without special tokens around it."""
        found: list[int] = self._model.tokenize(text.encode(), add_bos=False, special=False)
        return found

    def close(self) -> None:
        """Free its memory."""
        self._model.close()


@contextmanager
def opened(path: Path, length: int) -> Iterator[LlamaCpp]:
    """A file as long as it is needed; arguments and errors as `LlamaCpp` has them."""
    model = LlamaCpp(path, length)
    try:
        yield model
    finally:
        model.close()


def measure_file(config: RunConfig, path: Path, data: str) -> Figures:
    """Divergence from the configuration's model and perplexity, as llama.cpp computes them of a GGUF file.

    Raises:
        ModuleNotFoundError: llama-cpp-python is not installed.
        ValueError: llama.cpp does not load the file, or it has another vocabulary.
    """
    with opened(path, config.data.length) as model:
        return measure_logits(config, path, model.vocabulary, model.logits, data)
