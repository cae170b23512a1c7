"""The output folder of an export: checks before it is written, its creation in one step, and files copied into it."""

import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ...spaces.storage.files import read_json, sync_folder
from ...spaces.storage.ownership import kind_of

RECORD = "paretopress.json"
"""Name of the record that every export holds; a folder without this file is not an export."""

_COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "LICENSE*", "NOTICE*")
_NOT_COPIED = ("config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json", RECORD)


@contextmanager
def appearing(output: Path, sources: Mapping[str, Path], overwrite: bool) -> Iterator[Path]:
    """Make a temporary folder beside `output` and rename it to `output` at the end, or delete it after an error.

    An earlier export at `output` is deleted only after the new folder has taken its place.

    Args:
        output: path that the folder will have.
        sources: folders that the export reads, by their names in messages; see `check_output`.
        overwrite: whether to replace an earlier export at `output`.

    Yields:
        The temporary folder, into which the export is to be written.

    Raises:
        FileExistsError: `check_output` refuses `output`, before or after the folder was written.
        OSError: the new export is complete, but the earlier one could not be deleted.
    """
    check_output(output, sources, overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(4)
    folder = output.with_name(f".{output.name}.{mark}.part")
    folder.mkdir()
    try:
        yield folder
        sync_folder(folder)
        replaced = check_output(output, sources, overwrite)
        if output.exists():
            old = output.with_name(f".{output.name}.{mark}.old")
            output.rename(old)
            try:
                folder.rename(output)
            except BaseException:
                old.rename(output)
                raise
            _remove(old, replaced, output)
        else:
            folder.rename(output)
        sync_folder(output.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def check_output(output: Path, sources: Mapping[str, Path], overwrite: bool) -> list[str]:
    """Refuse to write an export where it would replace, or mix with, anything but an earlier export.

    Args:
        output: the folder that an export is to become.
        sources: folders that the export reads, by their names in messages, for example `the model`.
        overwrite: whether an earlier export may be replaced.

    Returns:
        The files of the earlier export that will be replaced, as paths relative to `output`; empty if there is none.

    Raises:
        FileExistsError: `output` is, holds or lies in one of the sources; it is a link, a file or another thing
            that is no folder; it holds files that the record of an export there does not list; or it holds an export
            and `overwrite` is not set.
    """
    for name, source in sources.items():
        if (relation := _relation(output.resolve(), source.resolve())) is not None:
            raise FileExistsError(
                f"{output} {relation} {name}, {source}, which the export reads; choose another folder"
            )
    if (found := kind_of(output)) not in (None, "a folder"):
        raise FileExistsError(f"{output} is {found}; choose a folder")
    if found is None or not any(output.iterdir()):
        return []
    listed = _listed(output)
    if not overwrite:
        raise FileExistsError(f"{output} holds an export already; choose another folder, or overwrite it")
    files, other = _files(output, listed)
    if other is not None:
        raise FileExistsError(
            f"{other} is no file of the export at {output}; move it away, or choose another folder"
        )
    return files


def written_files(folder: Path) -> list[str]:
    """List the files of an export that is being written, its record included, as paths relative to `folder`."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return sorted(found | {RECORD})


def _relation(output: Path, source: Path) -> str | None:
    """Return `is`, `holds` or `lies in`, whichever relates `output` to `source`, or None if they are apart."""
    if output == source:
        return "is"
    if output in source.parents:
        return "holds"
    return "lies in" if source in output.parents else None


def _listed(output: Path) -> set[str]:
    """Return the files that the record of the export at `output` lists, or refuse a folder without such a record."""
    record = output / RECORD
    if kind_of(record) != "a file":
        raise FileExistsError(f"{output} holds other files; choose a new or empty folder")
    content = read_json(record)
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, list):
        raise FileExistsError(
            f"{record} does not list the files of its export, perhaps because an earlier release wrote it; "
            f"move {output} away, or choose another folder"
        )
    return set(map(str, files))


def _files(output: Path, listed: set[str]) -> tuple[list[str], Path | None]:
    """Return the listed regular files below `output`, and the first other file there, or None if there is none."""
    folders = {str(parent) for name in listed for parent in PurePosixPath(name).parents}
    files = []
    for path in sorted(output.rglob("*")):
        name, kind = path.relative_to(output).as_posix(), kind_of(path)
        if kind == "a file" and name in listed:
            files.append(name)
        elif kind != "a folder" or name not in folders:
            return files, path
    return files, None


def _remove(old: Path, files: list[str], output: Path) -> None:
    """Delete the listed files of an earlier export that was moved to `old`, but no file that was added since."""
    try:
        for name in files:
            (old / name).unlink()
        for folder in sorted((path for path in old.rglob("*") if path.is_dir()), reverse=True):
            folder.rmdir()
        old.rmdir()
    except OSError as error:
        raise OSError(
            f"{output} is complete, but the earlier export was not removed ({error}); what is left is in {old}"
        ) from error


def copy_companions(source: Path, folder: Path) -> None:
    """Copy tokenizer, generation settings, licence and Python code of the model from `source` to `folder`."""
    for pattern in _COPIED:
        for path in sorted(source.glob(pattern)):
            if path.is_file() and path.name not in _NOT_COPIED:
                shutil.copyfile(path, folder / path.name)
