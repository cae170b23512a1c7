"""Time to build the level database, in seconds per billion weights, with a layer's levels built together and apart.

    python -m benchmarks.speed.levels --hidden 3072 --mlp 8192 --heads 24 --kv-heads 8 --blocks 4
    python -m benchmarks.speed.levels --hidden 128 --mlp 256 --heads 4 --kv-heads 2 --tokens 512 --labels w2g32,w4g32 2:4

The first table is of one Llama block with random weights and random correlated inputs. Each set of labels is built
together, once with recorded kernels and once with kernels launched one by one, and then each label of each layer apart.
All results must agree bit for bit. The second table shows where the time of a block goes. The last table is the whole
pass over a made checkpoint of `--blocks` blocks, with the writing of files.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from benchmarks.shapes import Shape, make_model
from benchmarks.tables import show
from paretopress.evaluators.levels.building import CalibratedBuilderConfig, build_database
from paretopress.evaluators.levels.calibration import add_gram, host_copy
from paretopress.evaluators.runner.runner import BlockRunner
from paretopress.spaces.levels.builders import BuilderConfig, build, build_layers
from paretopress.spaces.levels.cuda_graphs import Function, Replays
from paretopress.spaces.levels.factor import factorize
from paretopress.spaces.levels.labels import parse_label
from paretopress.spaces.levels.layer_error import layer_errors
from paretopress.spaces.levels.packed import Packed, pack_level
from paretopress.spaces.levels.solver import Lane, Method, solve
from paretopress.spaces.model.dense_model import DenseModel
from paretopress.spaces.storage.database import LevelDatabase

SETS = (
    "w2g128,w3g128,w4g128,w5g128,w6g128",
    "s30,s40,s50,s60,s70,s80",
    "2:4+w4g128",
)
DTYPE = torch.bfloat16
Levels = dict[str, dict[str, Packed]]
Result = TypeVar("Result")


class OneByOne(Replays):
    """Replacement for recorded kernels that launches every kernel by itself."""

    def __call__(self, function: Function, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Call the function without recording its kernels."""
        return function(*tensors)


@dataclass(frozen=True, eq=False)
class Twins:
    """Linear layers that read the same inputs.

    Attributes:
        weights: weight (O, I) of every layer by name.
        inputs_PI: calibration inputs of the layers at some positions.
    """

    weights: dict[str, Tensor]
    inputs_PI: Tensor

    @property
    def count(self) -> int:
        """Number of weights in all layers."""
        return sum(weight.numel() for weight in self.weights.values())


def main() -> None:
    """Parse the command line, build the levels, and print the tables.

    Raises:
        SystemExit: levels built together differ from those built apart.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=3072)
    parser.add_argument("--mlp", type=int, default=8192)
    parser.add_argument("--heads", type=int, default=24)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=4, help="of the checkpoint for the whole pass; 0: none")
    parser.add_argument("--tokens", type=int, default=131_072, help="calibration tokens")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a sequence")
    parser.add_argument("--labels", nargs="+", default=SETS, help="sets of labels, each joined by commas")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    length = min(args.length, args.tokens)
    shape = Shape(
        args.blocks, args.hidden, args.mlp, args.heads, args.kv_heads, 1024, tied=True, length=length
    )
    sets = [tuple(part.split(",")) for part in args.labels]
    block = made_block(shape, min(args.tokens, 16_384), device)
    compare(block, sets)
    stages(block, sets[0], args.tokens)
    if args.blocks:
        whole_pass(shape, sets[0], args.tokens, device)


def made_block(shape: Shape, positions: int, device: torch.device) -> list[Twins]:
    """Make the linear layers of one block, with correlated inputs whose sizes differ much between channels."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, device=device)

    def twins(inputs: int, **outputs: int) -> Twins:
        weights = {name: (normal(rows, inputs) / inputs**0.5).to(DTYPE) for name, rows in outputs.items()}
        mixed_PI = normal(positions, inputs // 2) @ normal(inputs // 2, inputs) / inputs**0.5
        inputs_PI = (mixed_PI + 0.1 * normal(positions, inputs)) * normal(inputs).exp()
        return Twins(weights, inputs_PI.to(DTYPE))

    size = shape.hidden // shape.heads
    keys, queries = shape.kv_heads * size, shape.heads * size
    return [
        twins(shape.hidden, q=queries, k=keys, v=keys),
        twins(queries, o=shape.hidden),
        twins(shape.hidden, gate=shape.mlp, up=shape.mlp),
        twins(shape.mlp, down=shape.hidden),
    ]


def compare(block: Sequence[Twins], sets: Sequence[tuple[str, ...]]) -> None:
    """Print seconds per billion weights for every set of labels.

    Raises:
        SystemExit: levels built together differ from those built apart.
    """
    hessians = [add_gram(None, twins.inputs_PI) for twins in block]
    billions = sum(twins.count for twins in block) / 1e9
    config = BuilderConfig()

    def together(labels: tuple[str, ...], replays: Replays) -> list[Levels]:
        return [
            build_layers(
                twins.weights,
                hessian,
                dict.fromkeys(twins.weights, labels),
                config=config,
                dtype=DTYPE,
                replays=replays,
            )
            for twins, hessian in zip(block, hessians, strict=True)
        ]

    def apart(labels: tuple[str, ...]) -> list[Levels]:
        return [
            {
                layer: {label: build(weight, hessian, [label], config=config)[label] for label in labels}
                for layer, weight in twins.weights.items()
            }
            for twins, hessian in zip(block, hessians, strict=True)
        ]

    together(sets[0][:1], OneByOne())  # loads libraries and allocates memory before anything is timed
    rows = []
    for labels in sets:
        replays = Replays()
        first, levels = timed(partial(together, labels, replays))
        steady, again = timed(partial(together, labels, replays))
        launched, plain = timed(partial(together, labels, OneByOne()))
        alone, single = timed(partial(apart, labels))
        same = all(equal(levels, others) for others in (again, plain, single))
        seconds = [value / billions for value in (steady, first, launched, alone)]
        rows.append([",".join(labels), *seconds, alone / steady, "yes" if same else "NO"])
        if not same:
            raise SystemExit(f"{labels}: levels built together differ from those built apart")
    show(
        "GPTQ and SparseGPT, seconds per billion weights, all labels (Hessians made before)",
        ["labels", "together", "first block", "not recorded", "each apart", "apart/together", "same bits"],
        rows,
    )


def equal(some: Sequence[Levels], others: Sequence[Levels]) -> bool:
    """Return whether all stored tensors of two builds are the same, bit for bit."""
    return all(
        torch.equal(tensor, other[layer][label].tensors[name])
        for one, other in zip(some, others, strict=True)
        for layer, levels in one.items()
        for label, level in levels.items()
        for name, tensor in level.tensors.items()
    )


def stages(block: Sequence[Twins], labels: tuple[str, ...], tokens: int) -> None:
    """Print where the time of one block goes, with kernels recorded already and no stages overlapped."""
    replays = Replays()
    for _ in range(2):  # the first round records the kernels, and only the second one is shown
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            stored = in_stages(block, labels, replays, clock, Path(folder))
    scale = tokens / len(block[0].inputs_PI)
    seconds = {
        stage: value * scale if "Hessian" in stage else value for stage, value in clock.seconds.items()
    }
    seconds["all but those in brackets"] = sum(v for stage, v in seconds.items() if stage[0] != "(")
    billions = sum(twins.count for twins in block) / 1e9
    total = seconds["all but those in brackets"]
    show(
        f"Where the time of a block goes, {', '.join(labels)}, {tokens:,} tokens, {stored:,} bytes",
        ["stage", "ms", "s per billion weights", "share"],
        [[stage, 1e3 * v, v / billions, f"{v / total:.0%}"] for stage, v in seconds.items()],
    )


def in_stages(
    block: Sequence[Twins], labels: tuple[str, ...], replays: Replays, clock: "Clock", folder: Path
) -> int:
    """Build the levels of one block, time every stage, and return the bytes of the file."""
    method, config = Method(DTYPE, 128, "mse"), BuilderConfig()
    part: Levels = {}
    errors: dict[str, dict[str, float]] = {}
    for twins in block:
        with clock("(Hessian in float32 units)"):
            add_gram(None, twins.inputs_PI.float())
        with clock("Hessian"):
            hessian = add_gram(None, twins.inputs_PI)
        with clock("factorize"):
            factor = factorize(hessian, config.damp)
        places = [(layer, label) for layer in twins.weights for label in labels]
        lanes = [lane(twins.weights[layer].float(), label) for layer, label in places]
        with clock("columns"):
            solutions = solve(lanes, factor, method, replays)
        with clock("pack"):
            levels = {
                place: pack_level(place[1], solution, DTYPE)
                for place, solution in zip(places, solutions, strict=True)
            }
        with clock("decode"):
            dense = {place: level.dense() for place, level in levels.items()}
        with clock("errors"):
            for layer, weight in twins.weights.items():
                found = {label: dense[layer, label] for label in labels}
                errors[layer] = layer_errors(weight, found, hessian)
        with clock("to the host"):
            for (layer, label), level in levels.items():
                part.setdefault(layer, {})[label] = level.map(host_copy)
    database = LevelDatabase(folder, {})
    with clock("(write, overlapped)"):
        database.write("block-000", part, errors)
    return database.bytes


def lane(weight_OI: Tensor, label: str) -> Lane:
    """Return a layer at a level as the solver takes it, with its sparsity and grid."""
    scheme = parse_label(label)
    return Lane(weight_OI, scheme.sparsity, grid=scheme.grid)


def whole_pass(shape: Shape, labels: tuple[str, ...], tokens: int, device: torch.device) -> None:
    """Print the time of the whole pass over a made checkpoint, from the embedding to the written files."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_model(model, shape.config)
        dense = DenseModel.open(model)
        structure = dense.structure
        runner = BlockRunner(dense, device=device, dtype=DTYPE, micro_batch=1, length=shape.length)
        rng = np.random.default_rng(0)
        tokens_NT = rng.integers(0, shape.vocabulary, (tokens // shape.length, shape.length))
        wanted = {linear.path: labels for linear in structure.linears}
        database = LevelDatabase(Path(folder) / "levels", {"labels": wanted})
        marks: list[float] = []

        def mark(part: str) -> None:
            marks.append(time.perf_counter())

        seconds, _ = timed(
            lambda: build_database(
                database, wanted, runner, tokens_NT, CalibratedBuilderConfig(), progress=mark
            )
        )
    billions = sum(linear.out_features * linear.in_features for linear in structure.linears) / 1e9
    rows = [["all", seconds, seconds / billions]]
    if shape.blocks > 2:
        # A part is announced when the next part is computed, so all marks except the last are one block apart.
        steady = (marks[-2] - marks[0]) / (shape.blocks - 2)
        rows.append(["one more block", steady, steady * shape.blocks / billions])
    show(
        f"Whole pass, {', '.join(labels)}, {tokens:,} tokens, {shape.blocks} blocks",
        ["part", "seconds", "s per billion weights"],
        rows,
    )
    if device.type == "cuda":
        print(f"device: {torch.cuda.max_memory_allocated():,} bytes at most ({torch.cuda.get_device_name()})")


class Clock:
    """Adds up the seconds of named stages, where a stage ends when all its kernels are done."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time what runs in the context and add it to the stage's seconds."""
        wait()
        began = time.perf_counter()
        yield
        wait()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began


def timed(function: Callable[[], Result]) -> tuple[float, Result]:
    """Call a function and return its seconds until all kernels are done, and its result."""
    wait()
    began = time.perf_counter()
    result = function()
    wait()
    return time.perf_counter() - began, result


def wait() -> None:
    """Wait until the GPU has nothing left to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
