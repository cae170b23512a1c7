"""A folder that appears whole or not at all, and what an export copies into it."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..spaces.files import sync_folder

RECORD = "paretopress.json"
"""What every export holds, and what tells one from a folder with other files."""

_COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "LICENSE*", "NOTICE*")
_NOT_COPIED = ("config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json", RECORD)


@contextmanager
def appearing(output: Path, source: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside `output` that takes its place at the end, or vanishes after an error.

    Args:
        output: where it will be.
        source: the model that is exported; never overwritten.
        overwrite: replace an earlier export at `output`.

    Raises:
        FileExistsError: `output` holds something, and `overwrite` is not set or it is no export.
    """
    _check_free(output, source, overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(4)
    folder = output.with_name(f".{output.name}.{mark}.part")
    folder.mkdir()
    try:
        yield folder
        sync_folder(folder)
        if output.exists():
            old = output.with_name(f".{output.name}.{mark}.old")
            output.rename(old)
            try:
                folder.rename(output)
            except BaseException:
                old.rename(output)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            folder.rename(output)
        sync_folder(output.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def copy_companions(source: Path, folder: Path) -> None:
    """Copy tokenizer, generation settings, licence and the model's own code."""
    for pattern in _COPIED:
        for path in sorted(source.glob(pattern)):
            if path.is_file() and path.name not in _NOT_COPIED:
                shutil.copyfile(path, folder / path.name)


def _check_free(output: Path, source: Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if output.resolve() == source.resolve():
        raise FileExistsError(f"{output} is the model that is exported; choose another folder")
    if not output.is_dir():
        raise FileExistsError(f"{output} is a file; choose a folder")
    if any(output.iterdir()):
        if not (output / RECORD).exists():
            raise FileExistsError(f"{output} holds other files; choose a new or empty folder")
        if not overwrite:
            raise FileExistsError(f"{output} holds an export already; choose another folder, or overwrite it")
