"""The model card, a README.md that is written into the folder of an exported model."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...spaces.storage.files import write_atomic
from .winner import Winner


def write_card(
    folder: Path,
    winner: Winner,
    sentence: str,
    removed: int = 0,
    zeroed: Sequence[str] = (),
    absent: Sequence[str] = (),
) -> None:
    """Write the model card: the source model, the levels of its layers and the measured figures, as Markdown.

    Args:
        folder: folder of the export.
        winner: the model and profile that were written.
        sentence: the format's sentence about the weights.
        removed: number of blocks that were removed.
        zeroed: dropped branches that are written as zeros.
        absent: dropped branches that are left out of the files.
    """
    write_atomic(folder / "README.md", _card(winner, sentence, removed, zeroed, absent))


def _card(winner: Winner, sentence: str, removed: int, zeroed: Sequence[str], absent: Sequence[str]) -> str:
    """Return the text of the model card; the arguments are those of `write_card`."""
    profile, assignment, blocks = winner.profile, winner.assignment, len(winner.structure.blocks)
    lines = ["# Compressed with paretopress", "", f"Made from {_plain(winner.base)}"]
    lines[-1] += f" by `{_plain(profile.method)}`" if profile.method else ""
    lines[-1] += f" for the budget `{_plain(profile.budget)}`." if profile.budget else "."
    lines += ["", sentence, ""]
    counts = Counter(label for label in assignment.values() if label != "drop")
    lines += (
        ["| level | layers |", "| --- | --- |"]
        + [f"| {label} | {n} |" for label, n in sorted(counts.items())]
        if counts
        else []
    )
    gone = f", {len(absent)} are left out" if absent else ""
    if removed or zeroed or absent:
        lines += [
            "",
            f"{removed} of {blocks} blocks were removed, {len(zeroed)} more branches are written as zeros{gone}.",
        ]
    figures = [("held-out " + name, f"{value:.6g}") for name, value in profile.heldout.items()]
    figures += [(f"cost in {name}", f"{value:,}") for name, value in profile.costs.items()]
    if figures:
        lines += ["", "| figure | value |", "| --- | --- |"] + [
            f"| {_plain(name)} | {value} |" for name, value in figures
        ]
    lines += [
        "",
        "`paretopress.json` has the level of every layer, the fingerprints of model and levels, and the package versions.",
        "",
    ]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Return the text without the characters that would end a table cell, a line or code."""
    return " ".join(text.replace("|", "/").replace("`", "'").split())
