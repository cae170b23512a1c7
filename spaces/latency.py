"""Latency tables: measured microseconds of layers and branches at their levels."""

import math
from collections.abc import Mapping
from pathlib import Path

import yaml

from .model.structure import Linear

Latency = Mapping[str, Mapping[str, float]]
"""Module path, `OUTxIN` or `attention`/`mlp` to label to microseconds."""


def read_latency(path: Path) -> Latency:
    """The table in a YAML file.

    Raises:
        ValueError: the file holds no table.
    """
    table = yaml.safe_load(path.read_text())
    if not isinstance(table, dict):
        raise ValueError(f"{path} holds no latency table; see SpaceConfig.latency")
    return table


def nanoseconds(table: Latency, linear: Linear, label: str) -> int:
    """A layer's at one level, by its path or else its shape.

    Raises:
        ValueError: the table has no finite value.
    """
    rows = (linear.path, f"{linear.out_features}x{linear.in_features}")
    found = [table[row][label] for row in rows if row in table and label in table[row]]
    if not found or not math.isfinite(found[0]):
        raise ValueError(
            f"the latency table has no {label!r} for {rows[0]} or {rows[1]}; add it in microseconds"
        )
    return round(1000 * found[0])
