"""The structure of a decoder-only model: its blocks, their branches, and the linear layers of the branches.

The structure is found by rules instead of lists of architectures:

- The blocks are the longest list of modules of one class that take hidden states.
- The attention is the child of a block that takes an attention mask.
- All other linear layers of a block are its MLP.
- Two linear layers share an input if both receive the same tensor object when the block runs on the meta device.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
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
    """A linear layer with its weight matrix; an embedding counts as one, with a weight of shape (V, D).

    Attributes:
        path: path of the module in the model; its parameter is `path.weight`.
        in_features: number of inputs, the columns of the weight (O, I).
        out_features: number of outputs, the rows of the weight (O, I).
        transposed: whether the model stores the weight as (I, O), as GPT-2's `Conv1D` does.
    """

    path: str
    in_features: int
    out_features: int
    transposed: bool = False

    def turn(self, weight: Tensor) -> Tensor:
        """Convert a weight from the model's layout to (O, I), or back.

        The result is contiguous. A contiguous weight is copied only if the layer is `transposed`.
        """
        return (weight.T if self.transposed else weight).contiguous()


@dataclass(frozen=True, slots=True)
class Branch:
    """One of the two parts of a block that add to the residual stream.

    Attributes:
        kind: name of the part, `attention` or `mlp`.
        paths: paths of the modules that are replaced when the branch is dropped. They are one child of the block,
            or the linear layers themselves if these are children of the block (as in OPT).
        linears: linear layers of the branch, in the order of the model's modules.
        groups: paths of the linear layers, grouped by the tensor they read; each layer is in exactly one group.
        outputs: 0 if the first module of `paths` returns a tensor, else the length of the tuple that it returns.
    """

    kind: Kind
    paths: tuple[str, ...]
    linears: tuple[Linear, ...]
    groups: tuple[tuple[str, ...], ...]
    outputs: int


@dataclass(frozen=True, slots=True)
class Block:
    """One decoder block of the model.

    Attributes:
        index: position of the block among the blocks, from 0.
        path: path of the block's module in the model.
        branches: the attention, then the MLP.
    """

    index: int
    path: str
    branches: tuple[Branch, ...]

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The linear layers of all branches of the block."""
        return tuple(linear for branch in self.branches for linear in branch.linears)

    def dropped(self, labels: Mapping[str, str]) -> tuple[Kind, ...]:
        """Return the kinds of the dropped branches, in which every linear layer has the label `drop`.

        Args:
            labels: maps layer path to label; layers that are not named are kept.
        """
        return tuple(
            branch.kind
            for branch in self.branches
            if all(labels.get(linear.path) == "drop" for linear in branch.linears)
        )


@dataclass(frozen=True, slots=True)
class Ends:
    """The token embedding and the head of a model.

    Attributes:
        embedding: the token embedding.
        head: the linear layer that computes the logits.
        tied: whether embedding and head share one weight.
    """

    embedding: Linear
    head: Linear
    tied: bool

    @property
    def linears(self) -> tuple[Linear, Linear]:
        """The embedding and the head, in this order."""
        return self.embedding, self.head


@dataclass(frozen=True, slots=True)
class Structure:
    """The blocks of a model, with its embedding and head.

    Attributes:
        model_class: name of the model's class.
        blocks_path: path of the module list that holds the blocks, such as `model.layers`.
        blocks: the blocks in the order in which they run.
        block_outputs: 0 if a block returns a tensor, else the length of the tuple that it returns.
        ends: the embedding and the head.
    """

    model_class: str
    blocks_path: str
    blocks: tuple[Block, ...]
    block_outputs: int
    ends: Ends

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The linear layers of all blocks, in order; the embedding and the head are not included."""
        return tuple(linear for block in self.blocks for linear in block.linears)


def find_structure(model: PreTrainedModel) -> Structure:
    """Find the structure of a model by the rules of this module; its parameters may be on the meta device.

    Time: one forward pass of a copy whose blocks are on the meta device, a few milliseconds per block.

    Raises:
        ValueError: the model's class is built in a way that the rules do not cover.
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
    """Return the paths of the linear layers that serving engines fuse: q/k/v together, gate/up together.

    A group holds the layers of one branch that read the same tensor. A layer that is alone in its group is left out.
    """
    return tuple(
        group
        for block in structure.blocks
        for branch in block.branches
        for group in branch.groups
        if len(group) > 1
    )


def _blocks_path(model: PreTrainedModel) -> str:
    """Return the path of the module list that holds the blocks."""
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
    """Return the names of the arguments of a module's forward."""
    return inspect.signature(module.forward).parameters


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _linear(path: str, module: nn.Module) -> Linear:
    rows, columns = module.get_parameter("weight").shape
    return Linear(path, rows, columns, True) if isinstance(module, Conv1D) else Linear(path, columns, rows)


def _linears(path: str, module: nn.Module) -> tuple[Linear, ...]:
    """Return the linear layers at and below the module at `path`."""
    found = [(name, m) for name, m in module.named_modules(remove_duplicate=False) if _is_linear(m)]
    return tuple(_linear(f"{path}.{name}" if name else path, m) for name, m in found)


_Part = tuple[Kind, tuple[str, ...], tuple[Linear, ...]]
"""Kind, paths and linear layers of a branch."""


def _block_parts(model_class: str, path: str, block: nn.Module) -> tuple[_Part, _Part]:
    """Split a block into its attention and its MLP.

    Raises:
        ValueError: the block is not made of one attention and one MLP of linear layers.
    """
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
    """Return those of the block's children `names` that take an attention mask, else those named like attention."""
    by_mask = [name for name in names if "attention_mask" in _parameters(block.get_submodule(name))]
    return by_mask or [name for name in names if "attn" in name or "attention" in name]


def _check_covered(model_class: str, path: str, block: nn.Module, linears: set[str]) -> None:
    """Refuse a block that has a weight matrix outside its linear layers, or one linear layer at two places."""
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
    """Find the token embedding and the head of a model."""
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
    """Run the model once to see what its modules take and return.

    The blocks run on the meta device. The parameters of all other modules are zeros that take no memory.

    Returns:
        The input tensor of every linear layer in the blocks, by path. The outputs of every other module in the
        blocks, by path (0 for a tensor, else the length of the tuple). The outputs of the first block.
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
    """Add a hook that writes to `inputs` what a linear layer reads, or to `outputs` what another module returns."""

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        inputs[path] = args[0]

    def after(_: nn.Module, __: tuple[Any, ...], result: object) -> None:
        outputs[path] = len(result) if isinstance(result, tuple | list) else 0

    if _is_linear(module):
        module.register_forward_pre_hook(before)
    else:
        module.register_forward_hook(after)


def _grouped(linears: tuple[Linear, ...], inputs: dict[str, Tensor]) -> tuple[tuple[str, ...], ...]:
    """Group the paths of linear layers by the tensor that they read."""
    groups: dict[int, list[str]] = {}
    for linear in linears:
        key = id(inputs.get(linear.path, linear))
        groups.setdefault(key, []).append(linear.path)
    return tuple(tuple(group) for group in groups.values())
