"""Conversion of tensor names from `transformers` to llama.cpp."""

from collections.abc import Callable

from gguf import MODEL_ARCH_NAMES, get_tensor_name_map


def tensor_names(architecture: str, blocks: int) -> Callable[[str], str]:
    """Return a function that converts a name such as `model.layers.0.mlp.up_proj.weight` to llama.cpp's name.

    The function raises a ValueError for a tensor that llama.cpp does not have.

    Args:
        architecture: llama.cpp's name of the architecture.
        blocks: number of blocks of the model.
    """
    kind = next(kind for kind, text in MODEL_ARCH_NAMES.items() if text == architecture)
    names = get_tensor_name_map(kind, blocks)

    def named(tensor: str) -> str:
        found = names.get_name(tensor, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ValueError(f"llama.cpp has no tensor for {tensor}; export with --format hf")
        return found

    return named
