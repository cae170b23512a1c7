"""Comparison of searched mixtures of llama.cpp's types with llama.cpp's own mixes of the same size.

    python -m benchmarks.exports.llama_mixes --folder /scratch --config configs/gguf.yaml --set model=DIR \\
        --set data.source=stdlib --set data.length=512 --mixes Q3_K_S Q3_K_M Q4_K_M --bits 3.5 4.5

llama.cpp's quantiser makes each mix from the model in 16 bits, with the importance of inputs measured on the same
calibration text that the levels are built with. One search has a budget for every mix, of as many bytes as the mix has,
and a budget for each of `--bits`, which are bits per weight of the whole model. llama.cpp computes the logits of all
files on held-out text. KL is the divergence from the dense model as this program computes it. `seconds` and `peak GB`
are time and growth of the process's memory during an export.
"""

import argparse
import ctypes
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from gguf import GGUFReader

from paretopress.evaluators.levels.calibration import CalibrationStates
from paretopress.exporters.artifact.winner import Winner, Winners
from paretopress.exporters.gguf.gguf import export_gguf
from paretopress.exporters.gguf.gguf_families import architecture
from paretopress.exporters.gguf.gguf_names import tensor_names
from paretopress.exporters.gguf.llama_cpp import FILE, measure_file
from paretopress.search.jobs.job import run as search
from paretopress.search.run.assembly import Assembly, assemble
from paretopress.search.run.configuration import RunConfig, load_config
from paretopress.spaces.model.dense_model import DenseModel

from ..memory import measured
from ..tables import show

Importance = Mapping[str, np.ndarray]
"""Mean squares of the inputs of a linear layer, by llama.cpp's name of its weight."""


@dataclass(frozen=True)
class Made:
    """A GGUF file. If this program exported it, `seconds` and `peak` (in GB) are the cost of the export."""

    name: str
    path: Path
    seconds: float | None = None
    peak: float | None = None

    @property
    def bytes(self) -> int:
        """Number of bytes of the file's tensors."""
        return sum(int(tensor.n_bytes) for tensor in GGUFReader(self.path).tensors)


def main() -> None:
    """Parse the command line, make all files, measure their divergence, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder")
    parser.add_argument("--config", type=Path, default=Path("configs/gguf.yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--mixes", nargs="*", default=["Q3_K_S", "Q3_K_M", "Q4_K_M"])
    parser.add_argument(
        "--bits", type=float, nargs="*", default=[3.5, 4.5], help="of the whole model, per weight"
    )
    args = parser.parse_args()
    config = load_config(args.config, args.overrides)
    assembly = assemble(config, args.folder / "databases")
    dense = Made("dense, 16 bits", args.folder / "dense" / FILE)
    export_gguf(
        Winner(DenseModel(assembly.checkpoint, assembly.structure), None, {}),
        dense.path.parent,
        overwrite=True,
    )
    known = importance(assembly)
    mixes = [mix(name, dense.path, args.folder / f"{name}.gguf", known) for name in args.mixes]
    weights = assembly.model.parameters
    sizes = {f"as {made.name}": made.bytes for made in mixes}
    sizes |= {f"{bits:g} bits": int(bits * weights / 8) for bits in args.bits}
    found = searched(args, sizes)
    rows = []
    for made in (dense, *mixes, *found):
        figures = measure_file(config, made.path, "heldout")
        bits = 8 * made.bytes / weights
        rows.append(
            [made.name, made.bytes, bits, figures["kl"], figures["perplexity"], made.seconds, made.peak]
        )
        print(*rows[-1], flush=True)
    show(
        "Held-out text, computed by llama.cpp",
        ("file", "tensor bytes", "bits per weight", "KL", "perplexity", "seconds", "peak GB"),
        rows,
    )


def searched(args: argparse.Namespace, sizes: Mapping[str, int]) -> list[Made]:
    """Run one search for all sizes in bytes, and export its point at each size."""
    budgets = ", ".join(f"{{bytes: {size}}}" for size in dict.fromkeys(sizes.values()))
    config: RunConfig = load_config(args.config, [*args.overrides, f"budgets=[{budgets}]"])
    run = args.folder / "run"
    began = time.perf_counter()
    front = search(config, run)
    print(f"search: {time.perf_counter() - began:.0f} s", flush=True)
    found = []
    for name, size in sizes.items():
        budget = front.find(f"bytes {size}").budget
        winner, output = Winners(run).choose(budget, None), args.folder / name.replace(" ", "-")
        cost = measured(lambda w=winner, o=output: export_gguf(w, o, overwrite=True))  # type: ignore[misc]
        found.append(Made(f"searched, {name}", output / FILE, cost.seconds, cost.resident))
    return found


def importance(assembly: Assembly) -> Importance:
    """Measure the mean squares of every linear layer's inputs on the text that levels are built with."""
    config = assembly.checkpoint.config
    names = tensor_names(architecture(config), config.num_hidden_layers)
    states = CalibrationStates(assembly.runner, assembly.builder_tokens)
    found = {}
    for block in assembly.structure.blocks:
        with assembly.runner.block(block.index) as loaded:
            for path, hessian in states.hessians(loaded, advance=True).items():
                mean = hessian.diagonal().double() / assembly.builder_tokens.size
                found[names(f"{path}.weight")] = mean.float().cpu().numpy()
    return found


def mix(name: str, source: Path, path: Path, known: Importance) -> Made:
    """Let llama.cpp make one of its own mixes.

    Raises:
        RuntimeError: llama.cpp could not make the mix.
    """
    matrices = (llama_cpp.llama_model_imatrix_data * (len(known) + 1))()
    for entry, (tensor, mean_I) in zip(matrices, known.items(), strict=False):
        entry.name = tensor.encode()
        entry.data = mean_I.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = mean_I.size
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    parameters.nthread = torch.get_num_threads()
    parameters.imatrix = matrices
    if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(parameters)):
        raise RuntimeError(f"llama.cpp did not make {name} of {source}")
    return Made(name, path)


if __name__ == "__main__":
    main()
