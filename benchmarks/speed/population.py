"""Time of one generation of EvoPress's quantisation search with the population evaluator and with the published loop.

    python -m benchmarks.speed.population --folder /scratch --shape llama-3.2b --json figures.json
    python -m benchmarks.speed.population --folder /scratch --shape llama-8b
    python -m benchmarks.speed.population --folder /scratch --shape llama-13b --only generation --cap 12GB \\
        --set evaluation.memory=11GB
    python -m benchmarks.speed.population --folder /scratch --only scaling
    python -m benchmarks.speed.population --folder /scratch --model DIR --only launches             # a small model on a GPU
    python -m benchmarks.speed.population --folder /scratch --model DIR --only arithmetic --micro-batch 1 2 4   # on a CPU

The command has several parts, which `--only` chooses. The default is the first four.

| part | what it does |
| --- | --- |
| baseline | runs the published loop once, with levels in the page cache and logits in host memory |
| generation | times the population evaluator on unused sequences, after a warm-up whose seconds are shown |
| profile | divides the time of each stage by kind of kernel |
| equality | checks that a profile's values are the same alone, among others and in other tiles, bit for bit |
| scaling | prints the cost against population, tokens, blocks and parameters |
| launches | compares a population with the same candidates one at a time |
| arithmetic | compares, for each micro-batch, the time of two populations with the floor |

The floor is the work that shared prefixes leave, divided by the device's matrix rate measured in the same run. The two
populations of `arithmetic` are those of evolution and of sensitivities. Models and levels that are in the folder
already are used again. A made model of 3.2 B parameters and its levels take 14 GB.
"""

import argparse
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.opening import Wanted, parsed, release
from benchmarks.speed.company import arithmetic, compare, launches
from benchmarks.speed.generation import CASES, Case, Plan
from benchmarks.speed.parts import baseline, generations, profiles
from benchmarks.speed.scaling import scaling
from benchmarks.tables import write_figures
from paretopress.spaces.budget import parse_bytes

Figures = dict[str, Any]
PARTS = ("baseline", "generation", "profile", "equality")
KNOWN = {"llama-3.2b": (32.1, 20.6, 49.9)}
"""Seconds that each stage took with the published code itself, measured on one H200, by shape."""
OTHERS: dict[str, Callable[[Wanted, argparse.Namespace], Figures]] = {
    "scaling": lambda wanted, _: scaling(wanted),
    "launches": lambda wanted, _: launches(wanted),
    "arithmetic": lambda wanted, args: arithmetic(wanted, args.micro_batch),
}


def main(arguments: Sequence[str] | None = None) -> Figures:
    """Parse the command line, run the parts, and print and return all figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=[*PARTS, *OTHERS], default=list(PARTS), metavar="PART")
    parser.add_argument("--no-baseline", action="store_true")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="of `generation`")
    parser.add_argument("--micro-batch", type=int, nargs="+", default=[1, 2, 4, 8], help="for `arithmetic`")
    parser.add_argument("--cap", help="device memory that may be used at most, such as 12GB")
    parser.add_argument("--json", type=Path, help="where all figures go")
    args, wanted = parsed(arguments, parser)
    parts = [part for part in args.only if not (part == "baseline" and args.no_baseline)]
    figures: Figures = {"command": sys.argv[1:] if arguments is None else list(arguments), **machine()}
    print(", ".join(f"{key} {value}" for key, value in machine().items()), flush=True)
    if args.cap:
        cap(parse_bytes(args.cap))
    if any(part in PARTS for part in parts):
        figures |= one_generation(wanted, parts, args.cases)
    for part in parts:
        if part in OTHERS:
            release()
            figures[part] = OTHERS[part](wanted, args)
    figures["host_peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"\nhost: peak {figures['host_peak_bytes']:,} bytes resident, mapped files included")
    if args.json:
        write_figures(args.json, figures)
    return figures


def one_generation(wanted: Wanted, parts: Sequence[str], cases: Sequence[Case]) -> Figures:
    """Run those of the parts baseline, generation, profile and equality that are asked for, on one model."""
    bench = wanted.open()
    figures: Figures = {}
    if "baseline" in parts:
        usual = wanted.model is None and wanted.plan == Plan()
        figures["baseline"] = baseline(bench, KNOWN.get(wanted.shape) if usual else None)
        release()
    if "generation" in parts:
        figures["generation"] = generations(bench, wanted.runs, figures.get("baseline"), cases)
    if "profile" in parts:
        figures["profile"] = profiles(bench)
    if "equality" in parts:
        figures["equality"] = compare(bench)
    return figures


def cap(limit: int) -> None:
    """Limit this process to `limit` bytes of the GPU's memory; PyTorch raises an error if it needs more."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(limit / total, 1.0))


def machine() -> Figures:
    """Return the device, the number of threads, and the versions of libraries."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    main()
