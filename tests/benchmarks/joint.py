"""A joint search (bits, 2:4 sparsity, drops) under two limits, its winner exported and measured by transformers.

    python -m tests.benchmarks.joint --model configs/quickstart-model --output runs/joint

Prints the winner's levels and its held-out perplexity twice: as the front has it, and as `AutoModelForCausalLM`
gives it from the exported folder in float32 over the same sequences. Ends with an error if they differ by more than
one part in a thousand. The search takes 2.3 M tokens.
"""

import argparse
import math
from collections import Counter
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from paretopress.exporters.hf import export_run
from paretopress.search.assembly import assemble
from paretopress.search.configuration import load_config
from paretopress.search.job import run

TOLERANCE = 1e-3


def main() -> None:
    """Parse the command line, search, export, compare.

    Raises:
        SystemExit: the two perplexities differ.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--config", type=Path, default=Path("configs/benchmarks/joint.yaml"))
    parser.add_argument("--output", type=Path, default=Path("runs/joint"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    args = parser.parse_args()
    config = load_config(args.config, [f"model={args.model}", *args.overrides])
    front = run(config, args.output / "run")
    space = assemble(config, args.output / "databases").space
    for row in [*front["baselines"], *front["points"]]:
        costs = {kind: row["costs"][kind] / space.weights for kind in ("bits", "macs")}
        low, high = row["heldout_interval"]
        print(
            f"{row['method']}: {costs['bits']:.4f} bits, {costs['macs']:.4f} of the multiply-accumulates, held-out KL "
            f"{row['heldout_kl']:.4f} ({low:.4f} to {high:.4f}), perplexity {row['heldout_perplexity']:.4f}"
        )
    (point,) = front["points"]
    print(f"search: {front['tokens'] + front['teacher_tokens']:,} tokens, {front['seconds']:.0f} s")
    print("levels:", dict(Counter(point["profile"].values()).most_common()))
    for line in export_run(
        args.output / "run", args.output / "model", budget=point["budget"], overwrite=True
    ):
        print(line)
    data = assemble(config, args.output / "databases").data["heldout"]
    exported = perplexity(args.output / "model", torch.from_numpy(data.tokens.astype("int64")))
    print(f"front: {point['heldout_perplexity']:.6f}; exported, by transformers: {exported:.6f}")
    if abs(exported / point["heldout_perplexity"] - 1) > TOLERANCE:
        raise SystemExit("the exported model is not the one of the front")


@torch.no_grad()
def perplexity(folder: Path, tokens_NT: torch.Tensor) -> float:
    """Of a model folder in float32, every sequence on its own, over all positions but the last."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    losses = []
    for tokens_T in tokens_NT:
        logits_TV = model(tokens_T[None]).logits[0, :-1]
        losses.append(float(torch.nn.functional.cross_entropy(logits_TV, tokens_T[1:])))
    return math.exp(math.fsum(losses) / len(losses))


if __name__ == "__main__":
    main()
