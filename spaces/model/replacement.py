"""Replacement of modules of a model, for good or for one forward pass of the model's own code.

Shapes: B sequences, T positions, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class StandIn(nn.Module):
    """A module that replaces `original` in a model; subclasses define what a call of it does.

    Attributes that the stand-in lacks are read from the original. The original is not a submodule of the stand-in, and
    its parameters and hooks stay as they are.

    Args:
        original: module that is replaced.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.__dict__["original"] = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["original"], name)


class _Visited(StandIn):
    """A stand-in for a block that calls a function instead of the block."""

    def __init__(self, original: nn.Module, function: Callable[..., object]) -> None:
        super().__init__(original)
        self.function = function

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.function(*args, **kwargs)


@dataclass(frozen=True, eq=False, slots=True)
class BlockCall:
    """The arguments that a model's forward gives a block besides the hidden states, such as masks and positions.

    Attributes:
        args: positional arguments after the hidden states.
        kwargs: keyword arguments by name, without the hidden states.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


Visit = Callable[[int, Tensor, BlockCall], object]
"""A function of block index, hidden states (B, T, D) and call; it returns what the block would return, see `answer`."""


class EnoughError(Exception):
    """Raised by a visit to end the forward pass early."""


def answer(states: Tensor, outputs: int) -> Tensor | tuple[Tensor | None, ...]:
    """Return hidden states in the form in which a module returns them.

    Args:
        states: hidden states (B, T, D).
        outputs: 0 for the bare tensor, else the length of a tuple whose first member is the tensor, the others None.
    """
    return (states, *[None] * (outputs - 1)) if outputs else states


def around_blocks(model: PreTrainedModel, blocks_path: str, visit: Visit, tokens_BT: Tensor) -> Tensor | None:
    """Run the model's own forward with `visit` in place of every block.

    Args:
        model: model whose blocks are replaced until this function returns.
        blocks_path: path of the module list that holds the blocks.
        visit: function that is called in place of each block.
        tokens_BT: input tokens (B, T).

    Returns:
        The logits (B, T, V), or None if a visit raised `EnoughError`.
    """
    with _visited(model.get_submodule(blocks_path), visit):
        try:
            logits: Tensor = model(input_ids=tokens_BT, use_cache=False).logits
        except EnoughError:
            return None
    return logits


@contextmanager
def _visited(blocks: nn.Module, visit: Visit) -> Iterator[None]:
    """Replace every block by `visit` while the context is open."""
    originals = dict(blocks.named_children())
    for i, (name, block) in enumerate(originals.items()):
        setattr(blocks, name, _Visited(block, _visitor(i, visit)))
    try:
        yield
    finally:
        for name, block in originals.items():
            setattr(blocks, name, block)


def _visitor(index: int, visit: Visit) -> Callable[..., object]:
    """Return a function with a block's signature that calls `visit`; models pass the states by position or by name."""

    def call(*args: Any, **kwargs: Any) -> object:
        if args:
            return visit(index, args[0], BlockCall(args[1:], kwargs))
        rest = dict(kwargs)
        return visit(index, rest.pop("hidden_states"), BlockCall((), rest))

    return call


def dummy_tokens(model: PreTrainedModel, sequences: int, length: int, which: int = 0) -> Tensor:
    """Return tokens (B, T) that all have one valid id, for forward passes whose tokens do not matter.

    Args:
        model: model whose padding token is avoided.
        sequences: number of sequences B.
        length: number of positions T.
        which: 0 or 1, to choose between two ids.
    """
    ids = [i for i in range(3) if i != model.config.pad_token_id]  # padding without a mask causes a warning
    return torch.full((sequences, length), ids[which], dtype=torch.long)


def set_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Replace the submodule of `root` at `path` by `module`."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def set_tensor(root: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace the parameter or buffer of `root` whose dotted name is `name` by `tensor`."""
    parent, _, leaf = name.rpartition(".")
    owner = root.get_submodule(parent)
    if leaf in owner._parameters:
        tensor = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
    setattr(owner, leaf, tensor)


def leaves(value: object) -> list[object]:
    """Return all values inside nested tuples, lists and mappings, in order."""
    flat, _ = torch.utils._pytree.tree_flatten(value)
    return list(flat)
