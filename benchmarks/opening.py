"""Options that several benchmarks share, and the model, text and levels that these options describe.

Models, text and levels that an earlier call left in the folder are used again.
"""

import argparse
import gc
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.shapes import SHAPES, Shape, prepare
from benchmarks.speed.generation import Bench, Plan
from paretopress.search.run.assembly import Assembly, assemble
from paretopress.search.run.configuration import load_config

WINDOWS = 12
"""Least number of windows of calibration sequences: two to warm up, three runs of three cases, and one to profile."""

ALIGNED = 16
"""Least number of sequences in a window, so that every window can begin at a whole micro-batch."""


@dataclass(frozen=True)
class Wanted:
    """The options of a command line about the model and its text.

    Attributes:
        folder: folder where models and levels are kept.
        config: path of the configuration file.
        overrides: settings that override the configuration, as `KEY=VALUE`.
        model: folder of a model, or None to make a model of `shape`.
        shape: name of the shape of a made model.
        length: number of tokens per sequence.
        plan: stages of the generation that is measured.
        runs: number of timed runs of every case.
    """

    folder: Path
    config: Path
    overrides: tuple[str, ...]
    model: str | None
    shape: str
    length: int
    plan: Plan
    runs: int

    @property
    def sequences(self) -> int:
        """Number of calibration sequences, equal for all parts of a benchmark, because levels depend on them."""
        return max(WINDOWS, 3 + 3 * self.runs) * max(self.plan.window(self.length), ALIGNED)

    def open(self, overrides: Sequence[str] = (), shape: Shape | None = None, name: str = "") -> Bench:
        """Open the model, which is made if needed, build its levels, and print the seconds of each step.

        Args:
            overrides: settings that override the configuration but not the user's own overrides.
            shape: shape to use instead of the command line's.
            name: name of that shape, which is the name of the model's folder.
        """
        began = time.perf_counter()
        if self.model is None or shape is not None:
            made = shape or SHAPES[self.shape]
            model = self.folder / (name or self.shape)
            # Documents are divided 3 : 1 : 1 among calibration, validation and held-out.
            text = prepare(model, made, math.ceil(self.sequences * 5 / 3) + 5)
            source = [f"model={model}", f"data.source={text}", f"space.levels=[{', '.join(made.levels)}]"]
        else:
            source = [f"model={self.model}"]
        print(f"model: {time.perf_counter() - began:.1f} s", end="; ", flush=True)
        began = time.perf_counter()
        assembly = self._assemble([*source, *self._sizes(), *overrides, *self.overrides])
        print(f"opened: {time.perf_counter() - began:.1f} s", end="; ", flush=True)
        build(assembly)
        return Bench(assembly, self.plan)

    def _assemble(self, overrides: list[str]) -> Assembly:
        return assemble(load_config(self.config, overrides), self.folder / "databases")

    def _sizes(self) -> list[str]:
        sets = ("data.validation.tokens", "data.heldout.tokens", "archive_tokens", "builder.tokens")
        tokens = self.sequences * self.length
        return [
            f"data.length={self.length}",
            f"data.calibration.tokens={tokens}",
            *(f"{key}={self.length}" for key in sets),
        ]


def build(assembly: Assembly) -> None:
    """Build the levels that are missing, and print the time that this took."""
    before = assembly.database.bytes
    began = time.perf_counter()
    assembly.build(lambda part: None)
    seconds = time.perf_counter() - began
    billions = sum(linear.in_features * linear.out_features for linear in assembly.structure.linears) / 1e9
    labels = max(len(labels) for labels in assembly.labels.values())
    made = "found" if before == assembly.database.bytes else f"{seconds / billions:.1f} s per billion weights"
    print(f"levels: {seconds:.1f} s ({labels} of {billions:.3g} B weights, {made})", flush=True)


def release() -> None:
    """Collect unused objects and give cached memory of the GPU back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def parsed(
    arguments: Sequence[str] | None, parser: argparse.ArgumentParser
) -> tuple[argparse.Namespace, Wanted]:
    """Add the shared options to a parser, parse the command line, and return all options and those about the model."""
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder for models and levels")
    parser.add_argument("--shape", choices=SHAPES, default="tiny", help="a made model")
    parser.add_argument("--model", help="a real model instead")
    parser.add_argument("--config", type=Path, default=Path("configs/benchmarks/population.yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--length", type=int, help="tokens per sequence (the shape's, 512 with --model)")
    parser.add_argument("--offspring", type=int, default=Plan.offspring)
    parser.add_argument("--survivors", type=int, nargs="+", default=Plan.survivors)
    parser.add_argument("--tokens", type=int, nargs="+", default=Plan.tokens, help="of each stage")
    parser.add_argument("--runs", type=int, default=3, help="timed runs, of which the median is shown")
    args = parser.parse_args(arguments)
    plan = Plan(args.offspring, tuple(args.survivors), tuple(args.tokens))
    length = args.length or (512 if args.model else SHAPES[args.shape].length)
    return args, Wanted(
        args.folder, args.config, tuple(args.overrides), args.model, args.shape, length, plan, args.runs
    )
