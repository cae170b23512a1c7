"""Memory that exports of a model of Llama-70B's dimensions need, which must not grow with the number of blocks.

    python -m benchmarks.exports.export_memory --folder /scratch/exports
    python -m benchmarks.exports.export_memory --folder /scratch/exports --shape narrow --blocks 2 12

The command makes a checkpoint with random weights (11 GB of bfloat16 with 4 blocks) and exports it in each format with
every linear layer at a 4-bit level, without a search. The levels of the first block, rounded to the nearest, serve all
blocks. For `nemotron-nas` the attention of the last block is dropped too. All files are removed at the end.

A row of the table has the GB that were written, the seconds, and the peak memory of the export beyond what the process
held before. Anonymous memory (`RssAnon`) is what an export needs. Resident memory (`VmRSS`) also counts pages of mapped
files, which stay as long as nothing else needs the memory. `of the model` is peak anonymous memory divided by the bytes
of the dense model. `per block` is the growth of anonymous memory with every block, compared with the first row of the
same format.
"""

import argparse
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from paretopress.exporters.artifact.winner import Winner
from paretopress.exporters.formats import FORMATS
from paretopress.spaces.levels.builders import BuilderConfig, build
from paretopress.spaces.model.checkpoint import Checkpoint
from paretopress.spaces.model.dense_model import DenseModel
from paretopress.spaces.model.structure import Structure, find_structure
from paretopress.spaces.profile_file import ProfileFile
from paretopress.spaces.storage.database import LevelDatabase

from ..memory import Cost, measured
from ..shapes import SHAPES, Shape, make_model
from ..tables import show

_SHAPES: Mapping[str, Shape] = {
    **SHAPES,
    "narrow": Shape(12, 512, 1536, 8, 4, 512, tied=False),
    "llama-70b": Shape(80, 8192, 28_672, 64, 8, 128_256, tied=False),
}
LEVELS = {"hf": "w4g128", "compressed-tensors": "w4g128", "nemotron-nas": "w4g128", "gguf": "q4_0"}
"""Label of the level that every linear layer has in an export, by format."""
_ROUNDED = BuilderConfig(quantizer="rtn", scales="minmax")
_COLUMNS = (
    "format",
    "blocks",
    "GB",
    "seconds",
    "GB/s",
    "anonymous GB",
    "resident GB",
    "of the model",
    "per block",
)


@dataclass(frozen=True)
class Row:
    """Measurements of one export.

    Attributes:
        form: name of the export format.
        blocks: number of blocks of the model.
        model: bytes of the dense model's weights.
        written: bytes of the exported weights.
        cost: seconds that the export took, and GB by which memory grew.
    """

    form: str
    blocks: int
    model: int
    written: int
    cost: Cost

    def cells(self, first: "Row") -> list[object]:
        """Return the cells of the row in the table, given the first row of the same format."""
        seconds, resident, anonymous = self.cost
        grown = (
            (anonymous - first.cost.anonymous) / (self.blocks - first.blocks) if self is not first else None
        )
        written = self.written / 1e9
        return [
            *(self.form, self.blocks, written, seconds, written / seconds),
            *(anonymous, resident, 1e9 * anonymous / self.model, grown),
        ]


def main() -> None:
    """Parse the command line, make and export a model of each size, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder, made here and removed")
    parser.add_argument("--shape", choices=_SHAPES, default="llama-70b")
    parser.add_argument("--blocks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--formats", nargs="+", choices=LEVELS, default=list(LEVELS))
    args = parser.parse_args()
    for _ in exports(args.folder, replace(_SHAPES["tiny"], blocks=2), args.formats):
        pass  # this loads the libraries, whose memory must not count
    rows = []
    for blocks in args.blocks:
        for row in exports(args.folder, replace(_SHAPES[args.shape], blocks=blocks), args.formats):
            rows.append(row)
            print(*row.cells(row), flush=True)
    first = {row.form: row for row in reversed(rows)}
    ordered = [row for form in args.formats for row in rows if row.form == form]
    show(f"Exports of {args.shape}'s dimensions", _COLUMNS, [row.cells(first[row.form]) for row in ordered])


def exports(folder: Path, shape: Shape, formats: Sequence[str]) -> Iterator[Row]:
    """Export a model of a given shape in each format, yield the row of each export, and remove `folder` at the end.

    Raises:
        FileExistsError: the folder exists already.
    """
    folder.mkdir(parents=True)
    try:
        make_model(folder / "model", shape.config)
        checkpoint = Checkpoint(folder / "model")
        structure = find_structure(checkpoint.skeleton())
        database = rounded(checkpoint, structure, folder / "levels", {LEVELS[form] for form in formats})
        for form in formats:
            output = folder / form
            winner = fixed(checkpoint, structure, database, form)
            cost = measured(lambda w=winner, f=form, o=output: FORMATS[f].write(w, o, False))  # type: ignore[misc]
            yield Row(form, shape.blocks, _bytes(checkpoint.path), _bytes(output), cost)
            shutil.rmtree(output)
    finally:
        shutil.rmtree(folder)


def rounded(checkpoint: Checkpoint, structure: Structure, path: Path, labels: set[str]) -> LevelDatabase:
    """Build a level database of all linear layers, in which every block has the levels of the first block."""
    first = {
        linear.path.removeprefix(structure.blocks[0].path): build(
            checkpoint.tensor(f"{linear.path}.weight"), None, sorted(labels), config=_ROUNDED
        )
        for linear in structure.blocks[0].linears
    }
    database = LevelDatabase(path, {"model": str(checkpoint.path)})
    for block in structure.blocks:
        levels = {block.path + layer: level for layer, level in first.items()}
        database.write(f"block-{block.index:03d}", levels, {layer: {} for layer in levels})
    return database


def fixed(checkpoint: Checkpoint, structure: Structure, database: LevelDatabase, form: str) -> Winner:
    """Make the model to export: every layer at the format's level, for `nemotron-nas` without the last attention."""
    labels = {linear.path: LEVELS[form] for linear in structure.linears}
    if form == "nemotron-nas":
        attention = next(branch for branch in structure.blocks[-1].branches if branch.kind == "attention")
        labels |= {linear.path: "drop" for linear in attention.linears}
    return Winner(DenseModel(checkpoint, structure), database, labels, ProfileFile(labels))


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf"))


if __name__ == "__main__":
    main()
