"""The formats that winners leave in. What writes them is imported when it is used: the command line lists them."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .artifact.winner import Winner

Writer = Callable[["Winner", Path, bool], list[str]]
"""Writes a winner into a folder, perhaps over an earlier export; gives lines for a person."""


@dataclass(frozen=True)
class Format:
    """One way to leave.

    Attributes:
        name: what users call it.
        writes: one line that says what it holds and who reads it.
        place: the file here and the function that writes it.
        fused: whether engines that read it fuse layers, which then need one scheme.
        package: what pip installs if something is missing.
    """

    name: str
    writes: str
    place: tuple[str, str]
    fused: bool
    package: str = ""

    @property
    def write(self) -> Writer:
        """What writes it.

        Raises:
            ModuleNotFoundError: a package is missing.
        """
        file, function = self.place
        try:
            found: Writer = getattr(import_module(f".{file}", __package__), function)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"the format {self.name!r} needs the package {error.name}; pip install {self.package or error.name!r}",
                name=error.name,
            ) from error
        return found


_ALL = (
    Format("hf", "dense weights with the compressed values", ("checkpoints.hf", "export_hf"), False),
    Format(
        "compressed-tensors",
        "packed integers and scales, for transformers and vLLM",
        ("checkpoints.compressed_tensors", "export_compressed_tensors"),
        True,
    ),
    Format(
        "nemotron-nas",
        "dense weights without the branches that were dropped, and the code that reads them",
        ("checkpoints.nemotron_nas", "export_nemotron_nas"),
        False,
    ),
    Format(
        "gguf",
        "llama.cpp's types, as they were searched",
        ("gguf.gguf", "export_gguf"),
        False,
        "paretopress[gguf]",
    ),
    Format(
        "llama-quantize",
        "a recipe without weights, for llama.cpp's own program",
        ("recipes.llama_quantize", "export_llama_quantize"),
        False,
    ),
    Format("llm-compressor", "a recipe without weights", ("recipes.llm_compressor", "export_recipe"), True),
    Format(
        "evopress",
        "EvoPress's text file, without weights",
        ("recipes.evopress_writing", "export_evopress"),
        False,
    ),
)
FORMATS = {form.name: form for form in _ALL}
"""Name to format."""
