"""The export formats, by name.

The code of a format is imported only when it is used, so that the command line can list the formats quickly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .artifact.winner import Winner

Writer = Callable[["Winner", Path, bool], list[str]]
"""A function of winner, output folder and whether to overwrite; it writes the export and returns lines for the user."""


@dataclass(frozen=True)
class Format:
    """One export format.

    Attributes:
        name: name of the format, as users write it.
        writes: one line about the content of the files and their readers.
        place: module below this package and name of the function in it that writes the format.
        fused: whether engines that read the format fuse layers, which then need one scheme.
        package: requirement for pip that installs what the format needs; empty for the missing package itself.
    """

    name: str
    writes: str
    place: tuple[str, str]
    fused: bool
    package: str = ""

    @property
    def write(self) -> Writer:
        """The function that writes the format; its module is imported here.

        Raises:
            ModuleNotFoundError: a package that the format needs is not installed.
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
"""Every export format, by its name."""
