"""Loading of a whole model into memory, for programs that call a model; every tensor is read once."""

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from ...spaces.model.checkpoint import Checkpoint
from ...spaces.model.replacement import set_tensor

_GENERATION = "generation_config.json"


@torch.no_grad()
def whole_model(checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Load a model as `from_pretrained(dtype=...)` would load dense files with the weights that `checkpoint` gives.

    Memory: the model on the device, and one tensor in host memory.

    Args:
        checkpoint: checkpoint that gives each weight by name, for example with a profile's levels in place.
        dtype: type of the weights and of computation.
        device: device that the model is loaded on.
    """
    model = checkpoint.skeleton(dtype)
    for name, buffer in list(model.named_buffers(remove_duplicate=False)):
        set_tensor(model, name, buffer.to(device))
    read: dict[int, Tensor] = {}
    for name, empty in model.state_dict(keep_vars=True).items():
        parameter = isinstance(empty, nn.Parameter)
        if not parameter and name not in checkpoint:  # a saved buffer that older files lack
            continue
        if id(empty) not in read:
            stored = checkpoint.tensor(name)
            tensor = stored.to(device, dtype if stored.is_floating_point() else stored.dtype, copy=True)
            read[id(empty)] = nn.Parameter(tensor, requires_grad=False) if parameter else tensor
        set_tensor(model, name, read[id(empty)])
    if (checkpoint.path / _GENERATION).is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.path)
    return model
