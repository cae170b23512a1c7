"""Dense Hugging Face checkpoints with the compressed values, for everything that loads such checkpoints."""

import importlib.metadata
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..search.front import find_point, heldout_figures
from ..search.refitted import kept_point, kept_refit
from ..search.runfolder import RunFolder
from ..spaces.checkpoint import Checkpoint
from ..spaces.database import LevelDatabase
from ..spaces.files import read_json, sync_folder, write_atomic, write_json
from ..spaces.structure import Structure, find_structure
from .dense_plan import Compression, plan_tensors
from .model_card import model_card
from .probe import compare_logits, passes_unchanged
from .profiles import ProfileFile, layer_labels, read_profile
from .shortening import shortened_config
from .tensor_files import verify_tensors, write_tensors

FORMAT_VERSION = 1
_RECORD = "paretopress.json"
_COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "LICENSE*", "NOTICE*")
_NOT_COPIED = ("config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json", _RECORD)


@dataclass(frozen=True)
class DenseExport:
    """What was written.

    Attributes:
        path: the folder.
        bytes: of the safetensors files.
        removed: indices, in the source, of the blocks that are gone; the others are renumbered.
        zeroed: dropped branches, named as units, that remain with zeros in all their linear layers and biases.
    """

    path: Path
    bytes: int
    removed: tuple[int, ...]
    zeroed: tuple[str, ...]


def export_dense(
    checkpoint: Checkpoint,
    structure: Structure,
    database: LevelDatabase | None,
    assignment: Mapping[str, str],
    output: Path,
    *,
    profile: ProfileFile | None = None,
    device: str | torch.device = "cpu",
    shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> DenseExport:
    """Write a model whose weights are those of `assignment`, in the source's types and under its names.

    A block whose branches are all dropped is removed and the next ones take its number; where a block without
    its branches still changes what passes (norms on the residual stream), it stays. A dropped branch of a block
    that stays becomes zeros. What was written is read back and compared byte for byte, and its logits on a few
    tokens with the block runner's. The folder appears whole or not at all.

    Memory: one tensor while writing; one block, embedding and head for the logits.

    Args:
        checkpoint: the dense model.
        structure: its structure.
        database: where the levels are; None if nothing but `drop` is assigned.
        assignment: layer path to label; what is not named is dense, `drop` names whole branches.
        output: the folder to make.
        profile: what is known of the profile, for `paretopress.json` and the model card.
        device: where levels are unpacked and logits compared.
        shard_bytes: weights are split into files of at most this size, or of one tensor.
        overwrite: replace an earlier export at `output`.
        trust_remote_code: allow Python code that comes with the checkpoint (it is copied along).

    Raises:
        ValueError: an unknown layer, a branch dropped in part, nothing left, or an architecture whose blocks
            cannot be renumbered.
        FileExistsError: `output` holds something, and `overwrite` is not set or it is no export.
        OSError: what was read back differs from what was meant.
    """
    device = torch.device(device)
    compression = Compression(structure, database, assignment, device)
    removed = tuple(i for i in compression.empty if passes_unchanged(checkpoint, structure, i, device))
    kept = [block.index for block in structure.blocks if block.index not in removed]
    zeroed = tuple(f"blocks.{i}.{kind}" for i in kept for kind in compression.dropped.get(i, ()))
    config = shortened_config(checkpoint, len(structure.blocks), kept)
    with _appearing(output, checkpoint.path, overwrite) as folder:
        _copy_files(checkpoint.path, folder)
        write_json(folder / "config.json", config)
        tensors = plan_tensors(checkpoint, compression, removed)
        size = write_tensors(folder, tensors, shard_bytes)
        verify_tensors(folder, tensors)
        compare_logits(checkpoint, compression, Checkpoint(folder, trust_remote_code), device)
        known = profile or ProfileFile({})
        record = {
            "format_version": FORMAT_VERSION,
            "format": "hf",
            "profile": known.record(),
            "layers": dict(assignment),
            "removed_blocks": removed,
            "zeroed_branches": zeroed,
            "bytes": size,
            "fingerprints": {"model": checkpoint.fingerprint, "database": database and database.fingerprint},
            "versions": _versions(),
        }
        write_json(folder / _RECORD, record)
        card = model_card(known, assignment, len(structure.blocks), len(removed), zeroed)
        write_atomic(folder / "README.md", card)
    return DenseExport(output, size, removed, zeroed)


def export_run(
    run: Path,
    output: Path,
    *,
    budget: str | None = None,
    profile: Path | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Export a point of a run's front, or a profile file with the run's levels, as `export_dense` does.

    A profile whose refit was kept is written with the refitted levels.

    Args:
        run: a run's folder; its level database lies beside it, in `databases/`.
        output: the folder to make.
        budget: which point: the budget's name or its last word (`bits 3.25` or `3.25`).
        profile: a profile file instead.
        overwrite: replace an earlier export at `output`.

    Returns:
        Lines that say what was written.

    Raises:
        ValueError: neither or both of budget and profile are given, the front has no such point, or the profile
            is of another model.
        FileNotFoundError: the run has no front, or its levels are gone.
    """
    folder = RunFolder(run)
    front, config = folder.read_front(), folder.read_config()
    if front is None or config is None:
        raise FileNotFoundError(f"{run} has no front yet; let the search finish, then export")
    known = _chosen(front, budget, profile)
    checkpoint = Checkpoint(config["model"], trust_remote_code=config["trust_remote_code"])
    if known.fingerprint not in (None, checkpoint.fingerprint):
        raise ValueError(
            f"the profile is of another model than {config['model']}; give a profile of this one"
        )
    structure = find_structure(checkpoint.skeleton())
    assignment = layer_labels(known.units, structure)
    stored = set(assignment.values()) - {"drop"}
    refitted = kept_refit(run, known.units)
    if refitted is not None:
        refitted.verify()
        known = replace(known, heldout=heldout_figures(kept_point(front, known.units) or {}))
    plain = run.parent / "databases" / front["fingerprints"]["database"]
    summary = export_dense(
        checkpoint,
        structure,
        (refitted or _database(plain)) if stored else None,
        assignment,
        output,
        profile=known,
        device="cuda" if torch.cuda.is_available() else "cpu",
        overwrite=overwrite,
        trust_remote_code=config["trust_remote_code"],
    )
    lines = [f"{output}: {summary.bytes:,} bytes of dense weights in {checkpoint.dtype}"]
    if refitted is not None:
        figures = ", ".join(f"held-out {name} {value:.6g}" for name, value in known.heldout.items())
        lines.append(f"refitted weights; {figures}")
    if summary.removed:
        lines.append(
            f"{len(summary.removed)} of {len(structure.blocks)} blocks removed: {_listed(summary.removed)}"
        )
    if summary.zeroed:
        lines.append(f"dropped branches written as zeros: {_listed(summary.zeroed)}")
    return lines


def _chosen(front: dict[str, Any], budget: str | None, profile: Path | None) -> ProfileFile:
    if (budget is None) == (profile is None):
        raise ValueError(
            f"give a budget of the run ({_listed(p['budget'] for p in front['points'])}) or a profile file"
        )
    if profile is not None:
        return read_profile(profile)
    point = find_point(front, str(budget))
    return ProfileFile(
        point["profile"],
        model=front["model"],
        fingerprint=front["fingerprints"]["model"],
        method=point["method"],
        budget=point["budget"],
        costs=point["costs"],
        heldout=heldout_figures(point),
    )


def _database(path: Path) -> LevelDatabase:
    manifest = path / "manifest.json"
    if not manifest.exists():
        raise FileNotFoundError(
            f"{path} does not exist; build the run's levels again with `paretopress build`"
        )
    return LevelDatabase(path, read_json(manifest)["recipe"])


def _listed(items: Iterable[object]) -> str:
    return ", ".join(str(item) for item in items)


@contextmanager
def _appearing(output: Path, source: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside `output` that takes its place at the end, or vanishes after an error."""
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
            folder.rename(output)
            shutil.rmtree(old)
        else:
            folder.rename(output)
        sync_folder(output.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _check_free(output: Path, source: Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if output.resolve() == source.resolve():
        raise FileExistsError(f"{output} is the model that is exported; choose another folder")
    if not output.is_dir():
        raise FileExistsError(f"{output} is a file; choose a folder")
    if any(output.iterdir()):
        if not (output / _RECORD).exists():
            raise FileExistsError(f"{output} holds other files; choose a new or empty folder")
        if not overwrite:
            raise FileExistsError(f"{output} holds an export already; choose another folder, or overwrite it")


def _copy_files(source: Path, folder: Path) -> None:
    """Copy tokenizer, generation settings, licence and the model's own code."""
    for pattern in _COPIED:
        for path in sorted(source.glob(pattern)):
            if path.is_file() and path.name not in _NOT_COPIED:
                shutil.copyfile(path, folder / path.name)


def _versions() -> dict[str, str]:
    names = ("paretopress", "torch", "transformers", "safetensors")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
