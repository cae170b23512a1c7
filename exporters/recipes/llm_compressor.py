"""The export format `llm-compressor`: a recipe with the bits and group size of every layer."""

from pathlib import Path

from ...spaces.levels.labels import Grid, parse_label
from ...spaces.storage.files import write_yaml
from ..artifact.appearing import appearing
from ..artifact.model_card import write_card
from ..artifact.record import write_record
from ..artifact.winner import Winner
from ..checkpoints.quantization_config import config_groups

RECIPE = "recipe.yaml"
_SENTENCE = (
    f"`{RECIPE}` gives llm-compressor the bits of every layer. llm-compressor makes its own weights; the figures below "
    "are of the weights of paretopress."
)


def export_recipe(winner: Winner, output: Path, overwrite: bool) -> list[str]:
    """Write the winner's recipe.

    Returns:
        Lines for the user that say how the recipe is used.

    Raises:
        ValueError: a level is not an integer grid of a linear layer, or no layer has a level.
        FileExistsError: `output` holds something, and `overwrite` is not set or it is not an export.
    """
    grids = {path: (_grid(winner, path), inputs) for path, inputs in _inputs(winner).items()}
    if not grids:
        raise ValueError("no layer has an integer level, so there is nothing to quantise; use --format hf")
    quantizer = winner.config.builder.quantizer if winner.config else "gptq"
    modifier = "GPTQModifier" if quantizer == "gptq" else "QuantizationModifier"
    linears = (winner.structure.ends.head, *winner.structure.linears)
    ignore = [linear.path for linear in linears if linear.path not in grids]
    content = {"config_groups": config_groups(grids), "ignore": ignore}
    with appearing(output, winner.sources, overwrite) as folder:
        write_yaml(folder / RECIPE, {"quant_stage": {"quant_modifiers": {modifier: content}}})
        write_card(folder, winner, _SENTENCE)
        write_record(folder, "llm-compressor", winner, {"modifier": modifier})
    return [
        f"{output / RECIPE}: a recipe with {modifier} for {len(grids)} layers",
        "llm-compressor makes its own weights, not those that were measured",
        f"next: oneshot(model={str(winner.checkpoint.path)!r}, recipe={str(output / RECIPE)!r}, ...)",
    ]


def _inputs(winner: Winner) -> dict[str, int]:
    """Return the number of inputs of every layer with a level, by path, in the model's order."""
    linears = (*winner.structure.linears, *winner.structure.ends.linears)
    given = {path: label for path, label in winner.assignment.items() if label != "dense"}
    return {linear.path: linear.in_features for linear in linears if linear.path in given}


def _grid(winner: Winner, path: str) -> Grid:
    """Return the grid of a layer's level, or refuse a level that a recipe cannot express."""
    label, ends = winner.assignment[path], winner.structure.ends
    linears = {linear.path: linear for linear in (*winner.structure.linears, *ends.linears)}
    scheme = None if label == "drop" else parse_label(label)
    if scheme is None or scheme.grid is None or scheme.sparsity is not None:
        fact = "recipes of llm-compressor hold only bits"
    elif path == ends.embedding.path or linears[path].transposed:
        fact = "recipes of llm-compressor quantise only torch.nn.Linear layers"
    else:
        return scheme.grid
    raise ValueError(f"{path} takes {label!r}, but {fact}; export with --format hf")
