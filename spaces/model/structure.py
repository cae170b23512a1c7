"""What a decoder-only model consists of: blocks, their branches, and the linear layers of these.

Everything is found by rule: blocks are the longest list of modules of one class that take hidden states;
attention is a block's child that takes an attention mask; the other linear layers of a block are its MLP;
layers that share an input are those that were handed the same tensor when the block ran on the meta device.
"""

import copy
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .replacement import BlockCall, EnoughError, answer, around_blocks, dummy_tokens, set_tensor

Kind = Literal["attention", "mlp"]


@dataclass(frozen=True, slots=True)
class Linear:
    """A weight matrix; an embedding counts as one of shape (vocabulary, hidden).

    Attributes:
        path: the module's path in the model; its parameter is `path.weight`.
        in_features: inputs of a row.
        out_features: number of outputs, the rows of its weight (O, I).
        transposed: stored as (in, out), as GPT-2's `Conv1D` does.
    """

    path: str
    in_features: int
    out_features: int
    transposed: bool = False

    def turn(self, weight: Tensor) -> Tensor:
        """From the stored layout to (out, in), or back; contiguous, and no copy unless `transposed`."""
        return (weight.T if self.transposed else weight).contiguous()


@dataclass(frozen=True, slots=True)
class Branch:
    """One of the two parts of a block that add to the residual stream.

    Attributes:
        kind: `attention` or `mlp`.
        paths: modules that are replaced when the branch is dropped: one child of the block, or the linear
            layers themselves where they sit on the block (OPT).
        linears: in the order of the model's modules.
        groups: paths of the layers that read the same tensor, each layer in one group.
        outputs: 0 if the child returns a tensor, else the length of the tuple it returns.
    """

    kind: Kind
    paths: tuple[str, ...]
    linears: tuple[Linear, ...]
    groups: tuple[tuple[str, ...], ...]
    outputs: int


@dataclass(frozen=True, slots=True)
class Block:
    """One decoder block; its attention stands before its MLP."""

    index: int
    path: str
    branches: tuple[Branch, ...]

    @property
    def linears(self) -> tuple[Linear, ...]:
        """All linear layers of the block."""
        return tuple(linear for branch in self.branches for linear in branch.linears)


@dataclass(frozen=True, slots=True)
class Ends:
    """Token embedding and head; one tensor if `tied`."""

    embedding: Linear
    head: Linear
    tied: bool

    @property
    def linears(self) -> tuple[Linear, Linear]:
        """Embedding and head."""
        return self.embedding, self.head


@dataclass(frozen=True, slots=True)
class Structure:
    """A model's blocks and ends.

    Attributes:
        model_class: name of the model's class.
        blocks_path: the list that holds the blocks, such as `model.layers`.
        blocks: in the order in which they run.
        block_outputs: 0 if a block returns a tensor, else the length of the tuple it returns.
        ends: embedding and head.
    """

    model_class: str
    blocks_path: str
    blocks: tuple[Block, ...]
    block_outputs: int
    ends: Ends

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The linear layers of all blocks, in order; embedding and head are not among them."""
        return tuple(linear for block in self.blocks for linear in block.linears)


def find_structure(model: PreTrainedModel) -> Structure:
    """The structure of a model whose parameters may be on the meta device.

    Costs one pass over a copy without weights, a few milliseconds per block.

    Raises:
        ValueError: the model's class is built in a way that these rules do not cover.
    """
    name = type(model).__name__
    blocks_path = _blocks_path(model)
    found = [
        _block_parts(name, f"{blocks_path}.{i}", block)
        for i, block in enumerate(model.get_submodule(blocks_path).children())
    ]
    inputs, outputs, block_outputs = _probe(model, blocks_path)
    blocks = []
    for i, parts in enumerate(found):
        branches = tuple(
            Branch(kind, paths, linears, _grouped(linears, inputs), outputs.get(paths[0], 0))
            for kind, paths, linears in parts
        )
        blocks.append(Block(i, f"{blocks_path}.{i}", branches))
    return Structure(name, blocks_path, tuple(blocks), block_outputs, _ends(model))


def fused_groups(structure: Structure) -> tuple[tuple[str, ...], ...]:
    """Paths of the layers that serving engines fuse: q/k/v together, gate/up together.

    They are the layers of one branch that read the same tensor; a layer that shares with none is not listed.
    """
    return tuple(
        group
        for block in structure.blocks
        for branch in block.branches
        for group in branch.groups
        if len(group) > 1
    )


def _blocks_path(model: PreTrainedModel) -> str:
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len({type(member) for member in module}) == 1
        and "hidden_states" in _parameters(module[0])
        and any(_is_linear(inner) for inner in module[0].modules())
    ]
    if not lists:
        raise ValueError(
            f"{type(model).__name__} has no list of blocks of one class that take hidden states; "
            "give a model with uniform decoder blocks"
        )
    path, _ = max(lists, key=lambda item: len(item[1]))
    return str(path)


def _parameters(module: nn.Module) -> Iterable[str]:
    return inspect.signature(module.forward).parameters


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _linear(path: str, module: nn.Module) -> Linear:
    rows, columns = module.get_parameter("weight").shape
    return Linear(path, rows, columns, True) if isinstance(module, Conv1D) else Linear(path, columns, rows)


def _linears(path: str, module: nn.Module) -> tuple[Linear, ...]:
    found = [(name, m) for name, m in module.named_modules(remove_duplicate=False) if _is_linear(m)]
    return tuple(_linear(f"{path}.{name}" if name else path, m) for name, m in found)


_Part = tuple[Kind, tuple[str, ...], tuple[Linear, ...]]


def _block_parts(model_class: str, path: str, block: nn.Module) -> tuple[_Part, _Part]:
    """Kind, replaced modules and linear layers of the two branches."""
    children = {name: found for name, m in block.named_children() if (found := _linears(f"{path}.{name}", m))}
    attention = _attention(block, list(children))
    if len(attention) != 1:
        raise ValueError(
            f"a block of {model_class} has {len(attention)} children that take an attention mask "
            f"among {', '.join(children)}; only models with one attention per block are supported"
        )
    rest = {name: found for name, found in children.items() if name not in attention}
    loose = [name for name in rest if _is_linear(block.get_submodule(name))]
    if not rest or (len(rest) > 1 and len(loose) < len(rest)):
        raise ValueError(
            f"a block of {model_class} has linear layers in {', '.join(rest) or 'nothing'} besides {attention[0]}; "
            "only models with one attention and one MLP per block are supported"
        )
    linears = (children[attention[0]], tuple(linear for found in rest.values() for linear in found))
    _check_covered(model_class, path, block, {linear.path for part in linears for linear in part})
    return (
        ("attention", (f"{path}.{attention[0]}",), linears[0]),
        ("mlp", tuple(f"{path}.{name}" for name in rest), linears[1]),
    )


def _attention(block: nn.Module, names: list[str]) -> list[str]:
    by_mask = [name for name in names if "attention_mask" in _parameters(block.get_submodule(name))]
    return by_mask or [name for name in names if "attn" in name or "attention" in name]


def _check_covered(model_class: str, path: str, block: nn.Module, linears: set[str]) -> None:
    """Refuse blocks with weight matrices that are no linear layers, or with one layer at two places."""
    for name, parameter in block.named_parameters():
        owner = f"{path}.{name.rpartition('.')[0]}"
        if parameter.dim() > 1 and owner not in linears:
            raise ValueError(
                f"{path}.{name} of {model_class} has {parameter.dim()} dimensions but is no linear layer; "
                "only blocks of linear layers and norms are supported"
            )
    if len({id(block.get_parameter(f"{p.removeprefix(f'{path}.')}.weight")) for p in linears}) < len(linears):
        raise ValueError(
            f"{path} of {model_class} uses one linear layer twice; such sharing is not supported"
        )


def _ends(model: PreTrainedModel) -> Ends:
    paths = {id(module): path for path, module in model.named_modules()}
    output: Callable[[], object] = model.get_output_embeddings
    embedding, head = model.get_input_embeddings(), output()
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        raise ValueError(
            f"{type(model).__name__} lacks a token embedding or a linear head; give a language model"
        )
    return Ends(
        _linear(paths[id(embedding)], embedding),
        _linear(paths[id(head)], head),
        embedding.weight is head.weight,
    )


def _probe(model: PreTrainedModel, blocks_path: str) -> tuple[dict[str, Tensor], dict[str, int], int]:
    """Run the blocks on the meta device, the rest on zeros that take no memory.

    Returns:
        The input of every linear layer in the blocks, the outputs of every other module there (0: a tensor,
        else the length of its tuple), and those of the blocks.
    """
    model = copy.deepcopy(model)
    blocks = model.get_submodule(blocks_path)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, int] = {}
    for name, module in blocks.to("meta").named_modules(prefix=blocks_path):
        _watch(name, module, inputs, outputs)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not name.startswith(f"{blocks_path}."):
            set_tensor(model, name, torch.zeros((), dtype=parameter.dtype).expand(parameter.shape))
    modules = list(blocks.children())

    def visit(index: int, states: Tensor, call: BlockCall) -> object:
        args, kwargs = torch.utils._pytree.tree_map_only(Tensor, _to_meta, (call.args, dict(call.kwargs)))
        modules[index](states.to("meta"), *args, **kwargs)
        if index == len(modules) - 1:
            raise EnoughError
        return answer(states, outputs[f"{blocks_path}.{index}"])

    with torch.inference_mode():
        around_blocks(model, blocks_path, visit, dummy_tokens(model, 1, 2))
    return inputs, outputs, outputs[f"{blocks_path}.0"]


def _to_meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


def _watch(path: str, module: nn.Module, inputs: dict[str, Tensor], outputs: dict[str, int]) -> None:
    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        inputs[path] = args[0]

    def after(_: nn.Module, __: tuple[Any, ...], result: object) -> None:
        outputs[path] = len(result) if isinstance(result, tuple | list) else 0

    if _is_linear(module):
        module.register_forward_pre_hook(before)
    else:
        module.register_forward_hook(after)


def _grouped(linears: tuple[Linear, ...], inputs: dict[str, Tensor]) -> tuple[tuple[str, ...], ...]:
    groups: dict[int, list[str]] = {}
    for linear in linears:
        key = id(inputs.get(linear.path, linear))
        groups.setdefault(key, []).append(linear.path)
    return tuple(tuple(group) for group in groups.values())
