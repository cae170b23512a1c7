"""Heat maps of profiles: one row per kind of unit, one column per block, stored bits per weight as colour."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape

from ...spaces.levels.labels import parse_label, stored_bits

SHADES = 9
"""Number of CSS classes for colours, from `shade-0` (fewest bits) to `shade-8`."""

_NOMINAL_WEIGHTS = 4096 * 4096
"""Number of weights assumed for a unit whose size is not known.

It only decides the shade of labels that add a number of zeros, such as `s60-1000000`.
"""
_OFFSET = re.compile(r"s[\d.]+([+-]\d+)")
_CELL, _GAP, _NAMES, _HEAD = 24, 2, 150, 22


@dataclass(frozen=True)
class Place:
    """Position of a unit in a heat map.

    Attributes:
        row: name of the row, which is the unit's path inside its block.
        block: number of the block, which is the column; None for embeddings and head.
    """

    row: str
    block: int | None


def place(name: str) -> Place:
    """Return the position of the unit `name`: the number of its block, and the rest of its path as the row.

    The name of a fused group is several paths joined by commas; their shared beginning appears once in the row.
    """
    paths = name.split(",")
    match = re.match(r"(?:\w+\.)*?(\d+)(?:\.|$)", paths[0])
    if not match:
        return Place(name, None)
    rests = [path[match.end() :] for path in paths]
    shared = rests[0].rpartition(".")[0] + "."
    joined = rests[0] + "".join(", " + rest.removeprefix(shared) for rest in rests[1:])
    return Place(joined or "block", int(match[1]))


def bits_per_weight(label: str, weights: int | None = None) -> float | None:
    """Return the stored bits per weight of a level, or None for labels of branches.

    The weights are counted as one row, so a grid with one group per output channel has one group here.

    Args:
        label: label of the level.
        weights: number of weights of the unit, if it is known.
    """
    if label in ("keep", "drop"):
        return None
    size = weights or _NOMINAL_WEIGHTS
    return stored_bits(parse_label(label), (1, size)) / size


class HeatMaps:
    """Heat maps of several profiles of one space, with common rows, columns and colours.

    Args:
        profiles: profiles to draw, each as a mapping from unit name to label.
        weights: number of weights of each unit where it is known, by unit name.
    """

    def __init__(self, profiles: Iterable[Mapping[str, str]], weights: Mapping[str, int]) -> None:
        self.profiles = list(profiles)
        self.weights = weights
        self.places: dict[str, Place] = {}
        bits: dict[str, float] = {}
        for profile in self.profiles:
            for name, label in profile.items():
                self.places.setdefault(name, place(name))
                known = bits_per_weight(label, weights.get(name))
                if known is not None and label != "dense":
                    bits.setdefault(label, known)
        self._words = {label for profile in self.profiles for label in profile.values()}
        self.bits = dict(sorted(bits.items(), key=lambda item: (item[1], item[0])))
        self.rows = self._rows()
        self.blocks = 1 + max((p.block for p in self.places.values() if p.block is not None), default=0)

    def _rows(self) -> list[str]:
        """Return the names of the rows in the order of the units, with embeddings and head last."""
        inside = [p for p in self.places.values() if p.block is not None]
        ends = [p for p in self.places.values() if p.block is None]
        return list(dict.fromkeys(p.row for p in (*inside, *ends)))

    def shade(self, label: str, name: str | None = None) -> str:
        """Return the CSS class of the colour in which a level is drawn.

        Args:
            label: label of the level.
            name: name of the unit, whose size, if known, gives the exact bits per weight; None for the legend.
        """
        if label in ("drop", "dense", "keep"):
            return f"level-{label}"
        bits = bits_per_weight(label, self.weights.get(name or "")) or 0.0
        low, high = min(self.bits.values()), max(self.bits.values())
        share = math.log(bits / low) / math.log(high / low) if high > low else 1.0
        return f"shade-{round(min(max(share, 0.0), 1.0) * (SHADES - 1))}"

    def svg(self, profile: Mapping[str, str], title: str) -> str:
        """Return the heat map of one profile as an SVG element, with `title` for screen readers."""
        width = _NAMES + self.blocks * (_CELL + _GAP)
        height = _HEAD + len(self.rows) * (_CELL + _GAP)
        parts = [self._heads(), *(self._row_name(i, row) for i, row in enumerate(self.rows))]
        parts += [self._cell(name, profile) for name in self.places]
        parts += [self._missing(row, block) for row, block in self._gone(profile)]
        box = f'viewBox="0 0 {width} {height}" style="width:{width}px"'
        return f'<svg class="map" {box} role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'

    def _heads(self) -> str:
        step = 1 if self.blocks <= 48 else 4
        return "".join(
            f'<text class="tick" x="{_left(block) + _CELL / 2:g}" y="{_HEAD - 8}" text-anchor="middle">{block}</text>'
            for block in range(0, self.blocks, step)
        )

    def _row_name(self, index: int, row: str) -> str:
        short = row if len(row) <= 24 else row[:23] + "…"
        y = _HEAD + index * (_CELL + _GAP) + _CELL / 2 + 4
        title = f"<title>{escape(row)}</title>"
        return (
            f'<text class="row" x="{_NAMES - 10}" y="{y:g}" text-anchor="end">{escape(short)}{title}</text>'
        )

    def _cell(self, name: str, profile: Mapping[str, str]) -> str:
        where = self.places[name]
        label = profile.get(name, "drop")
        left, top = _left(where.block or 0), _HEAD + self.rows.index(where.row) * (_CELL + _GAP)
        told = f"{name}\n{label}" if name in profile else f"{name}\ndropped with its branch"
        bits = bits_per_weight(label, self.weights.get(name))
        told += f", {bits:.4g} bits per weight" if bits is not None and name in self.weights else ""
        return _box(left, top, self.shade(label, name), told, short_label(label))

    def _gone(self, profile: Mapping[str, str]) -> list[tuple[str, int]]:
        """Return row name and block index of the layers that are in no profile and whose branch this profile drops.

        A layer is in no profile if its branch is dropped in all of them.
        """
        known = {(p.row, p.block) for p in self.places.values()}
        return [
            (row, block)
            for row, branches in self._owners.items()
            for block in range(self.blocks)
            if (row, block) not in known
            and any(profile.get(_branch(block, branch)) == "drop" for branch in branches)
        ]

    @cached_property
    def _owners(self) -> dict[str, list[str]]:
        """For each row of layers, the branches that these layers may belong to; "" stands for the whole block.

        A layer cannot belong to a branch that some profile drops while it has a level for the layer.
        """
        layers = [
            (name, p)
            for name, p in self.places.items()
            if p.block is not None and p.row not in ("attention", "mlp", "block")
        ]
        return {
            row: [
                branch
                for branch in ("attention", "mlp", "")
                if not any(
                    name in profile and profile.get(_branch(p.block, branch)) == "drop"
                    for name, p in layers
                    if p.row == row
                    for profile in self.profiles
                )
            ]
            for row in dict.fromkeys(p.row for _, p in layers)
        }

    def _missing(self, row: str, block: int) -> str:
        left, top = _left(block), _HEAD + self.rows.index(row) * (_CELL + _GAP)
        told = f"{row} of block {block}\ndropped with its branch"
        return _box(left, top, "level-drop", told, short_label("drop"))

    def legend(self) -> str:
        """Return the HTML of the legend, with one swatch per level; of more than 12 levels it shows seven."""
        labels = list(self.bits)
        if len(labels) > 12:
            labels = [labels[i * (len(labels) - 1) // 6] for i in range(7)]
        words = [(label, "" if _OFFSET.match(label) else f"{self.bits[label]:.3g} bits") for label in labels]
        words += [(word, "") for word in ("dense", "keep", "drop") if word in self._words]
        return "".join(
            f'<span class="key"><i class="swatch {self.shade(label)}"></i>{escape(label)}'
            f"<small>{escape(told)}</small></span>"
            for label, told in words
        )


def short_label(label: str) -> str:
    """Return at most three characters that stand for a level in a cell.

    They are the bits, the percentage of zeros, the millions of zeros added to it, or N:M, and a cross for `drop`. A
    text that would be longer is left out.
    """
    if label in ("drop", "keep", "dense"):
        return {"drop": "×", "keep": "", "dense": "·"}[label]
    if offset := _OFFSET.match(label):
        short = f"{int(offset[1]) / 1e6:+.2g}"
    else:
        short = re.sub(r"^[ws]?(\d+(?::\d+)?).*", r"\1", label)
    return short if len(short) <= 3 else ""


def _left(block: int) -> int:
    return _NAMES + block * (_CELL + _GAP)


def _branch(block: int | None, branch: str) -> str:
    """Return the unit name of a branch, or of the whole block if `branch` is empty."""
    return f"blocks.{block}.{branch}".rstrip(".")


def _box(left: int, top: int, style: str, told: str, text: str) -> str:
    middle = f'x="{left + _CELL / 2:g}" y="{top + _CELL / 2 + 4:g}"'
    box = f'<rect x="{left}" y="{top}" width="{_CELL}" height="{_CELL}" rx="3"/>'
    return (
        f'<g class="cell {style}"><title>{escape(told)}</title>{box}<text {middle}>{escape(text)}</text></g>'
    )
