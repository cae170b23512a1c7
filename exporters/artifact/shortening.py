"""The configuration of a model from which some blocks were removed."""

import json
from collections.abc import Sequence
from typing import Any

from ...spaces.model.checkpoint import Checkpoint


def shortened_config(checkpoint: Checkpoint, blocks: int, kept: Sequence[int]) -> dict[str, Any]:
    """Return the content of `config.json` for a model that keeps only some of its blocks.

    The number of blocks is written under the name that the configuration class gives it. Every list with one entry per
    block is reduced to the kept blocks. This includes lists that are not in the file because the configuration class
    derives them from other values (a pattern, a number of first layers). Those values would give other entries for
    renumbered blocks.

    Args:
        checkpoint: files of the source model.
        blocks: number of blocks of the source model.
        kept: indices of the blocks that are kept.

    Raises:
        ValueError: no block is kept.
    """
    record: dict[str, Any] = json.loads((checkpoint.path / "config.json").read_text(encoding="utf-8"))
    if len(kept) == blocks:
        return record
    if not kept:
        raise ValueError("every block is dropped; keep at least one, or there is no model to export")
    config = checkpoint.config.get_text_config()
    nested = [key for key in record if getattr(checkpoint.config, key, None) is config]
    target = record[nested[0]] if nested else record
    for key, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == blocks and _per_block(key):
            target[key] = [value[i] for i in kept]
    if "attention_types" in target:
        target["attention_types"] = [[[config.attention_layers[i] for i in kept], 1]]
    target[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(kept)
    return record


def _per_block(key: str) -> bool:
    """Tell whether a list under `key` can have an entry per block; class names and token ids, for example, cannot."""
    return key not in ("architectures", "attention_types") and "token" not in key
