"""The scheme of every layer as compressed-tensors' configurations say it: groups of layers with bits and group size."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...spaces.levels.labels import Grid

OLDEST = "0.19.0"
"""The first release that packs 3, 5, 6 and 7 bits without gaps; older ones take such files for other numbers."""


def config_groups(grids: Mapping[str, tuple[Grid, int]]) -> dict[str, dict[str, Any]]:
    """One group per scheme, its layers by exact name; a group of inputs wider than the row is the whole channel.

    Args:
        grids: layer path to its grid and number of inputs.

    Returns:
        Label of a scheme to `targets` and `weights`.
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
    """The content of `quantization_config` for packed integers; `ignore` names the linear layers that are dense."""
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
    """Layer path to label, from the `quantization_config` of a written model."""
    return {
        path: _label(group["weights"])
        for group in config["config_groups"].values()
        for path in group["targets"]
    }


def _label(weights: Mapping[str, Any]) -> str:
    group = f"g{weights['group_size']}" if weights["strategy"] == "group" else ""
    return f"w{weights['num_bits']}{group}" + ("" if weights["symmetric"] else "a")
