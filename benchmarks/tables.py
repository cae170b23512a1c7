"""Plain-text tables with aligned columns, and JSON files of figures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format a table whose columns are as wide as their longest cell; the first is aligned left, the others right."""
    cells = [list(headers), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    lines = []
    for row in cells:
        padded = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        padded[0] = row[0].ljust(widths[0])
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def show(title: str, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table under its title."""
    print(f"\n{title}\n{table(headers, rows)}", flush=True)


def write_figures(path: Path, figures: Mapping[str, Any]) -> None:
    """Write the figures of a run as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n")
