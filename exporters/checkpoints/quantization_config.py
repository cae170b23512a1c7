"""The `quantization_config` of compressed-tensors, which lists the layers of every scheme with bits and group size."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...spaces.levels.labels import Grid

OLDEST = "0.19.0"
"""The first release of compressed-tensors that packs 3, 5, 6 and 7 bits without gaps.

Older releases read wrong numbers from such files.
"""


def config_groups(grids: Mapping[str, tuple[Grid, int]]) -> dict[str, dict[str, Any]]:
    """Build the `config_groups` of a configuration: one group of layers per scheme, with the layers' exact names.

    A grid whose groups are wider than the layer's row is written as one group per output channel.

    Args:
        grids: maps layer path to the grid of the layer and its number of inputs.

    Returns:
        A mapping from the label of every scheme to a dictionary of `targets` (paths of the layers) and `weights` (the
        scheme).
    """
    groups: dict[str, dict[str, Any]] = {}
    for path, (grid, inputs) in grids.items():
        whole = grid.group is None or grid.group > inputs
        weights = {
            "num_bits": grid.bits,
            "type": "int",
            "symmetric": grid.symmetric,
            "strategy": "channel" if whole else "group",
            "group_size": None if whole else grid.group,
        }
        groups.setdefault(_label(weights), {"targets": [], "weights": weights})["targets"].append(path)
    return dict(sorted(groups.items()))


def packed_config(grids: Mapping[str, tuple[Grid, int]], ignore: Sequence[str]) -> dict[str, Any]:
    """Build the content of `quantization_config` for packed integers.

    Args:
        grids: maps layer path to the grid of the layer and its number of inputs.
        ignore: paths of the linear layers that are dense.
    """
    groups = config_groups(grids)
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "version": OLDEST,
        "config_groups": {name: {**group, "format": "pack-quantized"} for name, group in groups.items()},
        "ignore": list(ignore),
    }


def labels_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the label of every quantised layer, by path, from the `quantization_config` of a written model."""
    return {
        path: _label(group["weights"])
        for group in config["config_groups"].values()
        for path in group["targets"]
    }


def _label(weights: Mapping[str, Any]) -> str:
    """Return the label of a scheme that is given as the `weights` of a configuration group."""
    group = f"g{weights['group_size']}" if weights["strategy"] == "group" else ""
    return f"w{weights['num_bits']}{group}" + ("" if weights["symmetric"] else "a")
