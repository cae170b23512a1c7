"""Check that llm-compressor, given an exported recipe, quantises every layer to the bits and groups of the recipe.

    python3 -m venv apart && apart/bin/pip install torch==2.13.0 llmcompressor==0.14.0.1
    apart/bin/python benchmarks/exports/recipe.py --model DIR --recipe EXPORT --output DIR [--text FILE]

The command needs an environment of its own, because llm-compressor requires another version of transformers. A recipe
with `GPTQModifier` needs `--text`.
"""

import argparse
from pathlib import Path
from typing import Any

import yaml


def main() -> None:
    """Parse the command line, quantise the model, and compare it with the recipe.

    Raises:
        SystemExit: a layer has other bits or groups than the recipe says.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, required=True, help="folder of `--format llm-compressor`")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--text", type=Path, help="to calibrate on")
    args = parser.parse_args()
    quantise(args.model, args.recipe / "recipe.yaml", args.output, args.text)
    recipe = yaml.safe_load((args.recipe / "recipe.yaml").read_text())
    (modifier,) = recipe["quant_stage"]["quant_modifiers"].values()
    layers = compared(modifier["config_groups"], args.output)
    print(f"{layers} layers have the bits and groups of the recipe")


def quantise(model: Path, recipe: Path, output: Path, text: Path | None) -> None:
    """Let llm-compressor quantise a model by a recipe and write it to `output`, calibrated on `text` if given."""
    from datasets import Dataset
    from llmcompressor import oneshot  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    calibration: dict[str, Any] = {}
    if text is not None:
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokens = tokenizer(text.read_text())["input_ids"]
        rows = [tokens[first : first + 256] for first in range(0, min(len(tokens), 8192) - 255, 256)]
        calibration = {
            "dataset": Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * 256] * len(rows)}),
            "processor": tokenizer,
            "num_calibration_samples": len(rows),
            "max_seq_length": 256,
        }
    dense = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    oneshot(model=dense, recipe=str(recipe), output_dir=str(output), **calibration)


def compared(groups: dict[str, Any], output: Path) -> int:
    """Check the layers of every group of the recipe, and return the number of layers.

    Raises:
        SystemExit: a layer has other bits or groups than the recipe says.
    """
    from safetensors import safe_open

    with safe_open(output / "model.safetensors", "pt") as stored:
        wanted = [(path, group["weights"]) for group in groups.values() for path in group["targets"]]
        for path, weights in wanted:
            _, inputs = stored.get_tensor(f"{path}.weight_shape").tolist()
            words = stored.get_tensor(f"{path}.weight_packed").shape[1]
            groups_of_inputs = stored.get_tensor(f"{path}.weight_scale").shape[1]
            found = (32 * words // inputs, inputs // groups_of_inputs)
            if found != (weights["num_bits"], weights.get("group_size", inputs)):
                raise SystemExit(
                    f"{path} has {found[0]} bits in groups of {found[1]}, the recipe says {weights}"
                )
    return len(wanted)


if __name__ == "__main__":
    main()
