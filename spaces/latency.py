"""Latency tables: the measured latency of layers and branches at their levels, in microseconds."""

import math
from collections.abc import Mapping
from pathlib import Path

import yaml

from .model.structure import Linear

Latency = Mapping[str, Mapping[str, float]]
"""Maps a row and a label to microseconds.

A row is a module path, a layer shape `OUTxIN` (outputs x inputs), or `attention`, `mlp` or `block` for the time that a
kept branch or block takes beside its linear layers.
"""


def read_latency(path: Path) -> Latency:
    """Read the latency table in a YAML file.

    Raises:
        ValueError: the content of the file is not a mapping.
    """
    table = yaml.safe_load(path.read_text())
    if not isinstance(table, dict):
        raise ValueError(f"{path} is not a latency table; map layers and levels to microseconds")
    return table


def nanoseconds(table: Latency, linear: Linear, label: str) -> int:
    """Return the latency of a linear layer at one level in nanoseconds, looked up by its path or else its shape.

    Raises:
        ValueError: the table has no finite value for the layer at this level.
    """
    rows = (linear.path, f"{linear.out_features}x{linear.in_features}")
    found = [table[row][label] for row in rows if row in table and label in table[row]]
    if not found or not math.isfinite(found[0]):
        raise ValueError(
            f"the latency table has no {label!r} for {rows[0]} or {rows[1]}; add it in microseconds"
        )
    return round(1000 * found[0])
