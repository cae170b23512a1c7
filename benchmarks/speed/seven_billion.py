"""Time and memory of building levels and of a few search steps, on a model of Llama-2-7B's shape with random weights.

    python -m benchmarks.speed.seven_billion --folder /scratch/seven-billion --set builder.quantizer=rtn
    python -m benchmarks.speed.seven_billion --folder /scratch/two-blocks --blocks 2    # GPTQ, seconds per block

The checkpoint (13.5 GB of bfloat16) is made shard by shard, and its text is random and tokenised already. The dense
blocks stream from disk. The command prints the seconds of every stage, the resident memory of the process (which counts
pages of mapped files) with its peak, the anonymous memory at the end of each stage, and the peak memory of the device.
It needs about 25 GB of disk. `--blocks 2 --hidden 256 --mlp 512 --vocabulary 1000` makes a small model.
"""

import argparse
import resource
import time
from pathlib import Path

import torch
from transformers import LlamaConfig

from benchmarks.shapes import make_model, make_text
from paretopress.search.jobs.job import run
from paretopress.search.run.configuration import load_config
from paretopress.search.run.event import Event

HOST_LIMIT = 24_000_000_000


def main() -> None:
    """Parse the command line, make the model, run the search, and print time and memory.

    Raises:
        SystemExit: the process used more than 24 GB of host memory.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder for model, levels and run")
    parser.add_argument("--config", type=Path, default=Path("configs/benchmarks/seven_billion.yaml"))
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--mlp", type=int, default=11008)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    args = parser.parse_args()
    clock = Clock()
    model = args.folder / "model"
    shape = LlamaConfig(
        num_hidden_layers=args.blocks,
        hidden_size=args.hidden,
        intermediate_size=args.mlp,
        num_attention_heads=args.heads,
        vocab_size=args.vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    make_model(model, shape)
    make_text(model / "text.safetensors", args.vocabulary)
    clock.stage("make the model")
    overrides = [f"model={model}", f"data.source={model / 'text.safetensors'}", *args.overrides]
    front = run(load_config(args.config, overrides), args.folder / "run", listen=clock.listen)
    clock.stage("end")
    print(f"search: {front.evaluations} evaluations, {front.tokens:,} tokens, {front.seconds:.1f} s")
    print(f"files: {sum(f.stat().st_size for f in model.glob('*.safetensors')):,} bytes of model, ", end="")
    levels = (args.folder / "databases").glob("*/*.safetensors")
    print(f"{sum(f.stat().st_size for f in levels):,} bytes of levels")
    host = clock.peaks()
    if host > HOST_LIMIT:
        raise SystemExit(f"{host:,} bytes of host memory, over {HOST_LIMIT:,}")


class Clock:
    """Measures the seconds and memory of each stage and prints them when the stage ends."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.name = ""

    def listen(self, event: Event) -> None:
        """Take an event of a run, which may begin a new stage."""
        if event.stage != self.name:
            self.stage(self.name or "model and text until opened")
            self.name = event.stage
        elif event.done == event.total or event.done % 8 == 0:
            self._line(f"  {event.stage} {event.done}/{event.total} {event.text}")

    def stage(self, name: str) -> None:
        """Print the stage that ends here, and begin to time the next one."""
        self._line(name)
        self.began = time.perf_counter()

    def _line(self, name: str) -> None:
        memory = status()
        print(
            f"{name}: {time.perf_counter() - self.began:.1f} s; resident {memory['VmRSS'] / 1e9:.2f} GB, "
            f"of it anonymous {memory['RssAnon'] / 1e9:.2f}; peak {memory['VmHWM'] / 1e9:.2f}",
            flush=True,
        )

    def peaks(self) -> int:
        """Print the peaks of host and device memory, and return that of host memory in bytes."""
        peak = max(status()["VmHWM"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        print(f"host: peak {peak:,} bytes resident, mapped files included")
        if torch.cuda.is_available():
            print(
                f"device: peak {torch.cuda.max_memory_allocated():,} bytes allocated, "
                f"{torch.cuda.max_memory_reserved():,} reserved ({torch.cuda.get_device_name()})"
            )
        return peak


def status() -> dict[str, int]:
    """Return the memory figures of this process in bytes, by the kernel's names for them."""
    rows = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if row[-1] == "kB"}


if __name__ == "__main__":
    main()
