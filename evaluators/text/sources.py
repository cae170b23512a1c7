"""Sources of text, namely the standard library, text, JSONL and pre-tokenised files, and Hugging Face datasets.

A document is a string, or an int32 array (R, L) of R rows of L token ids if the source is tokenised already.

Shapes: N rows of a file, R rows of a document, L tokens of a row.
"""

import glob
import importlib
import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load_file

IntArray = npt.NDArray[np.int32]
Document = str | IntArray

_DIVIDER = r"^<\|endoftext\|>[ \t]*$"
# These modules differ between machines or distributions, so the same Python would give other text elsewhere.
_MACHINE_SPECIFIC = ("_sysconfigdata", "sitecustomize", "usercustomize")


class SourceConfig(BaseModel):
    """A source of documents; a plain string stands for `{source: STRING}`.

    Attributes:
        source: where the documents come from: `stdlib` (the modules of Python's standard library, one document each;
            no network), a path or glob of `.jsonl`, `.safetensors` (tensor `tokens` (N, L), optionally `documents` (N))
            or text files, or `hf:NAME`, `hf:ORGANISATION/NAME[/CONFIG]` or `hf:FOLDER` for a Hugging Face dataset.
        split: regular expression (multi-line) that matches between two documents of a text file. Without it, lines that
            hold only `<|endoftext|>` divide the documents, and a file without such lines is one document.
        field: name of the field of JSONL lines and datasets that holds the text.
        dataset_split: name of the split of a Hugging Face dataset.
        max_documents: largest number of documents that are read, from the beginning of the source.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field("stdlib", min_length=1)
    split: str | None = None
    field: str = "text"
    dataset_split: str = "train"
    max_documents: int = Field(20_000, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @field_validator("split")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(
                f"split {pattern!r} is not a regular expression ({error}); correct it"
            ) from error
        return pattern


def documents(config: SourceConfig) -> Iterator[Document]:
    """Yield the documents of a source in its own order, files in order of name, and leave out empty documents.

    Files are opened one after the other as documents are taken. A text file or `.safetensors` file is read whole, JSONL
    files and datasets line by line.

    Raises:
        ValueError: no file matches the path, or a file cannot be read as its name says.
        ModuleNotFoundError: the source is `hf:` and the package `datasets` is not installed.
    """
    for document in _all_documents(config):
        if not isinstance(document, str):
            yield document
        elif document.strip():
            # JSON can hold lone surrogates, which no tokenizer takes.
            yield document.encode(errors="replace").decode()


def _all_documents(config: SourceConfig) -> Iterator[Document]:
    if config.source == "stdlib":
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            if not path.name.startswith(_MACHINE_SPECIFIC):
                yield path.read_text(encoding="utf-8", errors="replace")
    elif config.source.startswith("hf:"):
        yield from _dataset(config)
    else:
        for path in _files(config.source):
            if path.suffix in (".jsonl", ".ndjson"):
                yield from _json_lines(path, config.field)
            elif path.suffix == ".safetensors":
                yield from _tokenised(path)
            else:
                yield from _divided(path, config.split or _DIVIDER)


def _files(pattern: str) -> list[Path]:
    whole = Path(pattern).expanduser()
    found = [whole] if whole.is_file() else map(Path, sorted(glob.glob(str(whole), recursive=True)))
    files = [path for path in found if path.is_file()]
    if not files:
        raise ValueError(
            f"no file matches data source {pattern!r}; give a path, a glob, stdlib, or hf:NAME for a dataset"
        )
    return files


def _divided(path: Path, pattern: str) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text at byte {error.start}; convert it to UTF-8") from error
    start = 0
    for match in re.finditer(pattern, text, re.MULTILINE):
        yield text[start : match.start()]
        start = match.end()
    yield text[start:]


def _json_lines(path: Path, field: str) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path} line {number} is not JSON ({error}); correct it") from error
            yield _field(record, field, f"{path} line {number}")


def _field(record: Any, field: str, where: str) -> str:
    fields = list(record) if isinstance(record, dict) else []
    text = record[field] if field in fields else None
    if not isinstance(text, str):
        known = ", ".join(fields) or "no fields"
        raise ValueError(
            f"{where} has no text in field {field!r}, it has {known}; name the field with the text as `field`"
        )
    return text


def _tokenised(path: Path) -> Iterator[IntArray]:
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error}); make it again") from error
    tokens_NL = tensors.get("tokens")
    if tokens_NL is None or tokens_NL.ndim != 2 or not np.issubdtype(tokens_NL.dtype, np.integer):
        known = ", ".join(f"{k} {list(t.shape)} {t.dtype}" for k, t in tensors.items()) or "nothing"
        raise ValueError(f"{path} holds {known}; it needs an integer tensor `tokens` of shape (N, L)")
    documents_N = tensors.get("documents", np.arange(len(tokens_NL)))
    if documents_N.shape != tokens_NL.shape[:1]:
        raise ValueError(
            f"{path}: `documents` has shape {list(documents_N.shape)}, `tokens` has {list(tokens_NL.shape)}; "
            "give one document number per row"
        )
    if tokens_NL.size and not 0 <= int(tokens_NL.min()) <= int(tokens_NL.max()) < 2**31:
        raise ValueError(f"{path} holds tokens outside 0..2**31; they must be indices of the vocabulary")
    rows = np.argsort(documents_N, kind="stable")
    borders = np.flatnonzero(np.diff(documents_N[rows])) + 1
    for of_document in sorted(np.split(rows, borders), key=lambda found: int(found[0])) if len(rows) else []:
        yield tokens_NL[of_document].astype(np.int32)


def _dataset(config: SourceConfig) -> Iterator[str]:
    name = config.source.removeprefix("hf:")
    try:
        datasets: Any = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise ModuleNotFoundError(
            f"data source {config.source!r} needs the datasets package; pip install 'paretopress[data]'"
        ) from error
    subset: str | None = None
    if not Path(name).is_dir() and name.count("/") == 2:
        name, _, subset = name.rpartition("/")
    rows = datasets.load_dataset(name, subset, split=config.dataset_split, streaming=True)
    for number, row in enumerate(rows):
        yield _field(row, config.field, f"{config.source} row {number}")
