"""Growth of a population's cost with candidates, tokens, blocks and parameters, measured on made models."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.opening import Wanted, release
from benchmarks.shapes import SHAPES, Shape
from benchmarks.speed.company import steady
from benchmarks.speed.generation import Bench, Plan
from benchmarks.speed.parts import WARM_UP, rate_of
from benchmarks.tables import show

Figures = dict[str, Any]


@dataclass(frozen=True)
class Axes:
    """Fixed and varied settings of the four tables.

    Attributes:
        shape: shape of the model in the first two tables, and the base of the shapes in the others.
        population: number of candidates in all tables but the first.
        tokens: number of tokens per candidate in all tables but the second.
        populations: numbers of candidates in the first table.
        more_tokens: numbers of tokens per candidate in the second table.
        blocks: numbers of blocks in the third table.
        hidden: sizes of the residual stream in the fourth table.
    """

    shape: Shape
    population: int
    tokens: int
    populations: tuple[int, ...]
    more_tokens: tuple[int, ...]
    blocks: tuple[int, ...]
    hidden: tuple[int, ...]


GPU = Axes(
    Shape(8, 2048, 5632, 16, 8, 32_000, tied=True, length=2048),
    population=64,
    tokens=4_096,
    populations=(32, 64, 128, 256),
    more_tokens=(2_048, 4_096, 8_192, 16_384),
    blocks=(2, 4, 8, 16),
    hidden=(1024, 2048, 3072, 4096),
)
CPU = Axes(
    SHAPES["tiny"],
    population=16,
    tokens=256,
    populations=(8, 16, 32, 64),
    more_tokens=(128, 256, 512, 1024),
    blocks=(2, 4, 8),
    hidden=(128, 256, 512),
)


def scaling(wanted: Wanted, axes: Axes | None = None) -> Figures:
    """Measure, print and return the four tables; the default settings suit the device."""
    axes = axes or (GPU if torch.cuda.is_available() else CPU)
    plan = Plan(axes.population, (1,), (2 * max(axes.more_tokens),))
    wanted = replace(wanted, length=axes.shape.length, plan=plan)
    figures: Figures = {}
    bench = _open(wanted, axes.shape)
    rate, _ = rate_of(bench)
    rows = [(n, *_timed(bench, n, axes.tokens, rate)) for n in axes.populations]
    figures["population"] = _shown("candidates", axes.tokens, rows)
    rows = [(n, *_timed(bench, axes.population, n, rate)) for n in axes.more_tokens]
    figures["tokens"] = _shown("tokens of each", axes.population, rows)
    del bench
    for name, shapes in (("blocks", _deeper(axes)), ("parameters", _wider(axes))):
        rows = []
        for size, shape in shapes.items():
            release()
            rows.append((size, *_timed(_open(wanted, shape), axes.population, axes.tokens, rate)))
        figures[name] = _shown(name, axes.population, rows)
    return figures


def _open(wanted: Wanted, shape: Shape) -> Bench:
    return wanted.open(shape=shape, name=f"scaling-{shape.blocks}x{shape.hidden}")


def _deeper(axes: Axes) -> dict[int, Shape]:
    """Return the shape of each number of blocks."""
    return {n: replace(axes.shape, blocks=n) for n in axes.blocks}


def _wider(axes: Axes) -> dict[int, Shape]:
    """Return shapes of growing hidden size by the number of parameters in their blocks; heads keep their size."""
    found = {}
    for hidden in axes.hidden:
        was = axes.shape
        heads, kv_heads = was.heads * hidden // was.hidden, was.kv_heads * hidden // was.hidden
        mlp = was.mlp * hidden // was.hidden
        shape = replace(was, hidden=hidden, mlp=mlp, heads=heads, kv_heads=kv_heads)
        keys = kv_heads * hidden // heads
        found[was.blocks * hidden * (2 * hidden + 2 * keys + 3 * mlp)] = shape
    return found


def _timed(bench: Bench, population: int, tokens: int, rate: float) -> tuple[float, float, float]:
    """Time one population after a warm-up, and return its seconds, its floor in seconds, and their ratio."""
    steady(bench, bench.offspring(WARM_UP, population), tokens)
    stage = steady(bench, bench.offspring(0, population), tokens)
    floor = stage.work.total / rate
    return stage.seconds, floor, stage.seconds / floor


def _shown(name: str, fixed: int, rows: list[tuple[int, float, float, float]]) -> list[Figures]:
    headers = (name, "s", "floor s", "s / floor")
    what = "tokens of each candidate" if name == "candidates" else "candidates"
    show(f"Cost against {name}, {fixed:,} {what}", headers, rows)
    return [dict(zip(headers, row, strict=True)) for row in rows]
