"""Speed of the level build and of the population evaluator, and whether company changes a value.

    python -m tests.benchmarks.throughput --model DIR --config configs/benchmarks/bits.yaml --micro-batch 4 16

For every micro-batch: the stages of one EvoPress generation (128 offspring on 2,048 tokens, 16 on 16,384, 5 on
131,072) of mutants of the uniform profile, in tokens per second (profiles times tokens, the teacher known). Then one
profile alone, and the same in the population and in two different tilings: the values must be equal bit for bit.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from paretopress.evaluators.trial import Fidelity
from paretopress.search.assembly import Assembly, assemble
from paretopress.search.configuration import load_config
from paretopress.search.mutation import Mutation
from paretopress.spaces.space import Profile

STAGES = ((128, 2_048), (16, 16_384), (5, 131_072))


def main() -> None:
    """Parse the command line and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--config", type=Path, default=Path("configs/benchmarks/bits.yaml"))
    parser.add_argument("--micro-batch", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--output", type=Path, default=Path("runs/throughput"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    args = parser.parse_args()
    for size in args.micro_batch:
        overrides = [f"model={args.model}", f"evaluation.micro_batch={size}", *args.overrides]
        measure(assemble(load_config(args.config, overrides), args.output / "databases"))


def measure(assembly: Assembly) -> None:
    """Build, time the stages, compare values."""
    evaluation = assembly.config.evaluation
    print(f"micro-batch {evaluation.micro_batch}, {evaluation.dtype} on {evaluation.device}", flush=True)
    began = time.perf_counter()
    assembly.build(lambda part: None)
    print(f"  levels: {assembly.database.bytes:,} bytes in {time.perf_counter() - began:.1f} s", flush=True)
    evaluator, space, length = assembly.evaluator(), assembly.space, assembly.config.data.length
    ((_, limits),) = assembly.limits
    uniform = space.uniform(limits)
    mutants = Mutation(space, limits, "none", False, 3).offspring(uniform, 128, np.random.default_rng(0))
    pool = len(assembly.data["calibration"])
    everything = Fidelity(0, 0, min(131_072 // length, pool), length)
    evaluator.measure([space.assignment(uniform)], everything)  # the teacher is kept, the levels are loaded
    total, seconds = 0, 0.0
    for count, tokens in STAGES:
        fidelity = Fidelity(0, 0, min(tokens // length, pool), length)
        assignments = [space.assignment(profile) for profile in mutants[:count]]
        began = time.perf_counter()
        evaluator.measure(assignments, fidelity)
        spent = time.perf_counter() - began
        total, seconds = total + count * fidelity.tokens, seconds + spent
        print(
            f"  {count} x {fidelity.tokens:,}: {spent:.2f} s, {count * fidelity.tokens / spent:,.0f} tokens/s"
        )
    print(
        f"  one generation: {total:,} tokens in {seconds:.2f} s, {total / seconds:,.0f} tokens/s", flush=True
    )
    _compare(assembly, mutants, min(16_384 // length, pool))
    if torch.cuda.is_available():
        print(f"  peak GPU memory {torch.cuda.max_memory_allocated():,} bytes", flush=True)


def _compare(assembly: Assembly, mutants: list[Profile], stop: int) -> None:
    """The third mutant alone, in company, from another start, and with memory for one candidate at a time.

    Raises:
        RuntimeError: a value differs.
    """
    assignments = [assembly.space.assignment(profile) for profile in mutants]
    fidelity = Fidelity(0, 0, stop, assembly.config.data.length)
    evaluator = assembly.evaluator()
    (alone,), _ = evaluator.measure(assignments[2:3], fidelity)
    company, _ = evaluator.measure(assignments[:16], fidelity)
    later, _ = evaluator.measure(assignments[1:4], Fidelity(0, 3, stop, fidelity.length))
    evaluator.memory = 1
    tiled, _ = evaluator.measure(assignments[2:5], fidelity)
    if not (company[2] == alone == tiled[0] and later[1] == alone[3:]):
        raise RuntimeError("a value depends on what else is evaluated")
    print("  a profile alone, in company and in other tiles: equal bit for bit", flush=True)


if __name__ == "__main__":
    main()
