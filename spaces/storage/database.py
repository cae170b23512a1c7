"""The level database: the weights of every layer at every level, built once per model and stored on disk.

The database has one part per decoder block and one for embeddings and head. A part is a safetensors file and a JSON
record with its checksum, the shapes of its layers and their errors. The record is written last, so a part that has a
record is complete, and a build that was killed continues with the parts that have none.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..levels.packed import Packed
from .files import (
    FORMAT_VERSION,
    check_version,
    digest,
    read_json,
    sha256_file,
    write_atomic,
    write_json,
    write_pieces,
)
from .streaming import safetensors_pieces

Errors = dict[str, dict[str, float]]
"""Maps a layer path and a label to the relative output error (NMSE) of the layer at that level."""


class LevelDatabase:
    """A folder of packed levels, looked up by layer path and label.

    Args:
        path: folder of the database; it need not exist.
        recipe: JSON values on which the levels depend: fingerprints of model and calibration, the builder's settings,
            and the labels of each layer.

    Raises:
        ValueError: the folder holds the levels of another recipe, or its manifest or a record cannot be read.
    """

    def __init__(self, path: Path, recipe: Mapping[str, Any]) -> None:
        self.path = path
        self.recipe = dict(recipe)
        self.fingerprint = digest(self.recipe)
        self._records: dict[str, dict[str, Any]] = {}
        self._place: dict[str, str] = {}
        self._verified: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Read the records of all parts on disk, including those that other processes have written.

        Raises:
            ValueError: the folder holds the levels of another recipe, or its manifest or a record cannot be read.
        """
        if not self._manifest.exists():
            return
        manifest = check_version(self._manifest, read_json(self._manifest))
        if manifest.get("fingerprint") != self.fingerprint:
            raise ValueError(
                f"{self.path} holds levels that were built with another recipe; choose another folder"
            )
        for record in sorted(self.path.glob("*.safetensors.json")):
            self._adopt(
                record.name.removesuffix(".safetensors.json"), check_version(record, read_json(record))
            )

    @property
    def _manifest(self) -> Path:
        return self.path / "manifest.json"

    def _begin(self) -> None:
        """Create the folder and its manifest, which happens only when the first part is written."""
        self.path.mkdir(parents=True, exist_ok=True)
        content = {"format_version": FORMAT_VERSION, "fingerprint": self.fingerprint, "recipe": self.recipe}
        write_json(self._manifest, content)

    def _adopt(self, part: str, record: dict[str, Any]) -> None:
        """Keep the record of a part in memory; a part whose record has changed must be verified again."""
        if self._records.get(part) != record:
            self._verified.discard(part)
        self._records[part] = record
        self._place |= dict.fromkeys(record["errors"], part)

    def has(self, part: str) -> bool:
        """Tell whether the part, such as `block-003` or `ends`, was written completely."""
        return part in self._records

    def write(self, part: str, levels: Mapping[str, Mapping[str, Packed]], errors: Errors) -> None:
        """Write one part and its record.

        Args:
            part: name of the part, such as `block-003` or `ends`.
            levels: maps each layer path and label to the packed level; the levels of a layer have one shape.
            errors: relative output errors of the same layers and levels.
        """
        if not self._manifest.exists():
            self._begin()
        tensors = {
            f"{layer}/{label}/{name}": tensor.contiguous().cpu()
            for layer, packed in levels.items()
            for label, level in packed.items()
            for name, tensor in level.tensors.items()
        }
        shapes = {layer: list(next(iter(packed.values())).shape) for layer, packed in levels.items()}
        file = self._file(part)
        record = {
            "format_version": FORMAT_VERSION,
            "sha256": write_pieces(file, safetensors_pieces(tensors)),
            "bytes": file.stat().st_size,
            "shapes": shapes,
            "errors": errors,
        }
        write_json(self._record(part), record)
        self._adopt(part, record)
        self._verified.add(part)

    def _file(self, part: str) -> Path:
        return self.path / f"{part}.safetensors"

    def _record(self, part: str) -> Path:
        return self.path / f"{part}.safetensors.json"

    def dump(self) -> dict[str, bytes]:
        """Return the content of every file by file name, for a machine that has no access to the folder."""
        files = [self._manifest, *map(self._file, self._records)]
        files += [self._record(part) for part in self._records]
        return {file.name: file.read_bytes() for file in files if file.exists()}

    def restore(self, content: Mapping[str, bytes]) -> None:
        """Write the files that `dump` returned on another machine, records last, then read and verify them.

        Raises:
            ValueError: the files belong to another recipe, in which case none is written, or a file is damaged.
        """
        manifest = json.loads(content.get(self._manifest.name, b"{}"))
        if manifest.get("fingerprint") != self.fingerprint or any(Path(n).name != n for n in content):
            raise ValueError(f"levels that were sent are not those of {self.path}; build them again")
        self.path.mkdir(parents=True, exist_ok=True)
        for name in sorted(content, key=lambda name: name.endswith(".safetensors.json")):
            write_atomic(self.path / name, content[name])
        self.refresh()
        self.verify()

    def verify(self) -> None:
        """Compare every level file with its checksum.

        Raises:
            ValueError: a level file is missing or differs from its checksum; the message says how to rebuild it.
        """
        for part in self._records:
            self._verify(part)

    def _verify(self, part: str) -> None:
        """Compare the level file of a part with its checksum and raise ValueError where they differ."""
        file = self._file(part)
        if not file.exists() or sha256_file(file) != self._records[part]["sha256"]:
            raise ValueError(
                f"{file} does not match its checksum; remove it and {part}.safetensors.json, then build again"
            )
        self._verified.add(part)

    def load(self, layer: str, label: str, device: torch.device) -> Packed:
        """Load one level of one layer to `device`; the level stays packed.

        The level file of the layer is compared with its checksum before this object first reads from it.

        Raises:
            ValueError: the database has no such layer or level, or the level file is damaged.
        """
        part = self._place.get(layer)
        if part is None:
            raise ValueError(f"layer {layer!r} is not in the level database {self.path}")
        if part not in self._verified:
            self._verify(part)
        prefix = f"{layer}/{label}/"
        shape = self._records[part]["shapes"][layer]
        with safe_open(self._file(part), framework="pt", device=str(device)) as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (not a dict)
            if not names:
                raise ValueError(f"level {label!r} of {layer} is not in {self._file(part)}")
            tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
        return Packed(label, (shape[0], shape[1]), tensors)

    def errors(self) -> Errors:
        """Return the relative output errors of all layers and levels that are built so far."""
        return {layer: row for record in self._records.values() for layer, row in record["errors"].items()}

    @property
    def bytes(self) -> int:
        """The bytes of all level files on disk, without manifest and records."""
        return sum(int(record["bytes"]) for record in self._records.values())
