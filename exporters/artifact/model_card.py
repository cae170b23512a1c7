"""The README.md that goes with an exported model."""

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
    """Write what the model is made from, how it was compressed and what was measured, as Markdown.

    Args:
        folder: of the export.
        winner: what was written.
        sentence: what there is to say of the files.
        removed: blocks that are gone.
        zeroed: branches that are zero.
        absent: branches that are left out.
    """
    write_atomic(folder / "README.md", _card(winner, sentence, removed, zeroed, absent))


def _card(winner: Winner, sentence: str, removed: int, zeroed: Sequence[str], absent: Sequence[str]) -> str:
    profile, assignment, blocks = winner.profile, winner.assignment, len(winner.structure.blocks)
    base = profile.model or "a pretrained language model"
    lines = ["# Compressed with paretopress", "", f"Made from {_plain(base)}"]
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
    gone = f", {len(absent)} left out" if absent else ""
    lines += ["", f"{removed} of {blocks} blocks were removed, {len(zeroed)} more branches are zero{gone}."]
    figures = [("held-out " + name, f"{value:.6g}") for name, value in profile.heldout.items()]
    figures += [(f"cost in {name}", f"{value:,}") for name, value in profile.costs.items()]
    if figures:
        lines += ["", "| figure | value |", "| --- | --- |"] + [
            f"| {_plain(name)} | {value} |" for name, value in figures
        ]
    lines += ["", "`paretopress.json` has the level of every layer, the fingerprints and the versions.", ""]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text without the characters that end a table cell, a line or code."""
    return " ".join(text.replace("|", "/").replace("`", "'").split())
