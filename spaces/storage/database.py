"""The level database: every layer's weights at every level, on disk, built once per model.

One safetensors file per block, each with a JSON record of checksum, errors and layers beside it; a block whose
record is there is complete, so a build that was killed goes on where it stopped.
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
"""Layer path to label to relative output error (NMSE)."""


class LevelDatabase:
    """Packed levels by layer path and label.

    Args:
        path: folder of the database.
        recipe: everything that decides the levels' values: fingerprints of model and calibration, the
            builder's settings, the labels of each layer.

    Raises:
        ValueError: the folder holds another recipe, or a file is damaged.
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
        """Take in what other processes have built."""
        if not self._manifest.exists():
            return
        manifest = check_version(self._manifest, read_json(self._manifest))
        if manifest.get("fingerprint") != self.fingerprint:
            raise ValueError(f"{self.path} holds the levels of another recipe; choose another folder")
        for record in sorted(self.path.glob("*.safetensors.json")):
            self._adopt(
                record.name.removesuffix(".safetensors.json"), check_version(record, read_json(record))
            )

    @property
    def _manifest(self) -> Path:
        return self.path / "manifest.json"

    def _begin(self) -> None:
        """Make the folder and its manifest; nothing is written before the first part."""
        self.path.mkdir(parents=True, exist_ok=True)
        content = {"format_version": FORMAT_VERSION, "fingerprint": self.fingerprint, "recipe": self.recipe}
        write_json(self._manifest, content)

    def _adopt(self, part: str, record: dict[str, Any]) -> None:
        if self._records.get(part) != record:
            self._verified.discard(part)
        self._records[part] = record
        self._place |= dict.fromkeys(record["errors"], part)

    def has(self, part: str) -> bool:
        """Whether the part (`block-003`, `ends`) was written completely."""
        return part in self._records

    def write(self, part: str, levels: Mapping[str, Mapping[str, Packed]], errors: Errors) -> None:
        """Write one part: layer path to label to level, with the layers' errors."""
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
        """The content of every file by name, for a machine that does not see the folder."""
        files = [self._manifest, *map(self._file, self._records)]
        files += [self._record(part) for part in self._records]
        return {file.name: file.read_bytes() for file in files if file.exists()}

    def restore(self, content: Mapping[str, bytes]) -> None:
        """Write what `dump` gave elsewhere, records last, and take it in.

        Raises:
            ValueError: it is another recipe's, or damaged; nothing is written of another's.
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
        """Compare every file with its checksum.

        Raises:
            ValueError: a file is missing or differs; the remedy is to remove it and build again.
        """
        for part in self._records:
            self._verify(part)

    def _verify(self, part: str) -> None:
        file = self._file(part)
        if not file.exists() or sha256_file(file) != self._records[part]["sha256"]:
            raise ValueError(
                f"{file} does not match its checksum; remove it and {part}.safetensors.json, then build again"
            )
        self._verified.add(part)

    def load(self, layer: str, label: str, device: torch.device) -> Packed:
        """One level of one layer on `device`, still packed.

        The layer's file is compared with its checksum when this object reads from it for the first time.

        Raises:
            ValueError: there is no such layer or level, or the file is damaged.
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
        """Relative output errors of every layer and level built so far."""
        return {layer: row for record in self._records.values() for layer, row in record["errors"].items()}

    @property
    def bytes(self) -> int:
        """Bytes of the level files on disk."""
        return sum(int(record["bytes"]) for record in self._records.values())
