"""A model's own forward with some of its modules replaced for a while.

Legend: B sequences, T positions, D hidden, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class StandIn(nn.Module):
    """Takes the place of `original`, whose attributes are still to be had; subclasses answer its calls.

    The original is not a submodule of its stand-in: paths, parameters and hooks stay where they were.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.__dict__["original"] = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["original"], name)


class _Visited(StandIn):
    """A block whose calls go to a function."""

    def __init__(self, original: nn.Module, function: Callable[..., object]) -> None:
        super().__init__(original)
        self.function = function

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.function(*args, **kwargs)


@dataclass(frozen=True, eq=False, slots=True)
class BlockCall:
    """What the model's forward hands a block besides the hidden states: masks, positions and so on."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


Visit = Callable[[int, Tensor, BlockCall], object]
"""(block index, states_BTD, call) to what the block would return; see `answer`."""


class EnoughError(Exception):
    """Raised by a visit that needs nothing of the rest of the forward."""


def answer(states: Tensor, outputs: int) -> Tensor | tuple[Tensor | None, ...]:
    """`states` as a module returns it: bare when `outputs` is 0, else first of a tuple of that length."""
    return (states, *[None] * (outputs - 1)) if outputs else states


def around_blocks(model: PreTrainedModel, blocks_path: str, visit: Visit, tokens_BT: Tensor) -> Tensor | None:
    """Run the model's own forward with `visit` in place of every block.

    Returns:
        logits_BTV, or None if a visit raised `EnoughError`.
    """
    with _visited(model.get_submodule(blocks_path), visit):
        try:
            logits: Tensor = model(input_ids=tokens_BT, use_cache=False).logits
        except EnoughError:
            return None
    return logits


@contextmanager
def _visited(blocks: nn.Module, visit: Visit) -> Iterator[None]:
    originals = dict(blocks.named_children())
    for i, (name, block) in enumerate(originals.items()):
        setattr(blocks, name, _Visited(block, _visitor(i, visit)))
    try:
        yield
    finally:
        for name, block in originals.items():
            setattr(blocks, name, block)


def _visitor(index: int, visit: Visit) -> Callable[..., object]:
    def call(*args: Any, **kwargs: Any) -> object:
        if args:
            return visit(index, args[0], BlockCall(args[1:], kwargs))
        rest = dict(kwargs)
        return visit(index, rest.pop("hidden_states"), BlockCall((), rest))

    return call


def dummy_tokens(model: PreTrainedModel, sequences: int, length: int, which: int = 0) -> Tensor:
    """Tokens_BT of one valid id, for forwards whose tokens do not matter; `which` chooses between two ids."""
    ids = [i for i in range(3) if i != model.config.pad_token_id]  # padding without a mask is warned of
    return torch.full((sequences, length), ids[which], dtype=torch.long)


def set_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at `path` below `root`."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def set_tensor(root: nn.Module, name: str, tensor: Tensor) -> None:
    """Make `tensor` the parameter or buffer `name` below `root`."""
    parent, _, leaf = name.rpartition(".")
    owner = root.get_submodule(parent)
    if leaf in owner._parameters:
        tensor = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
    setattr(owner, leaf, tensor)


def leaves(value: object) -> list[object]:
    """Everything inside nested tuples, lists and mappings, in order."""
    flat, _ = torch.utils._pytree.tree_flatten(value)
    return list(flat)
