"""One block that is loaded: its weights on the device, its configuration changed at will.

Legend: B micro-batch, T positions, D hidden, I inputs of a layer.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ..spaces.replacement import BlockCall, StandIn, answer, set_module, set_tensor
from ..spaces.structure import Block, Branch


class LoadedBlock:
    """One block, its weights on the device; made by `BlockRunner.block`."""

    def __init__(
        self,
        block: Block,
        module: nn.Module,
        dense: Mapping[str, Tensor],
        call: BlockCall,
        shape_BTD: tuple[int, int, int],
    ) -> None:
        self.block = block
        self._shape_BTD = shape_BTD
        self._module = module
        self._call = call
        self._relative = {path: path.removeprefix(f"{block.path}.") for path in _replaceable(block)}
        self._originals = {path: module.get_submodule(name) for path, name in self._relative.items()}
        self._dense = {
            linear.path: dense[f"{self._relative[linear.path]}.weight"] for linear in block.linears
        }
        self._replaced: list[str] = []

    @torch.inference_mode()
    def install(self, weights: Mapping[str, Tensor], dropped: Collection[str] = ()) -> None:
        """Set exactly this configuration; `install({})` restores the dense block. Biases stay.

        A dropped branch is not computed, its projections do not run, and it adds zero to the residual stream.
        A norm that follows the branch (Gemma) still runs, on zeros: without a bias it gives zeros.

        Args:
            weights: path of a linear layer to its weight (out, in); the others are dense. Used as they are
                where device, dtype and layout allow.
            dropped: `attention`, `mlp`, both or none.

        Raises:
            ValueError: an unknown path or branch, or a weight of another shape.
        """
        self._check(weights, dropped)
        for path in self._replaced:
            set_module(self._module, self._relative[path], self._originals[path])
        for linear in self.block.linears:
            tensor = self._dense[linear.path]
            if linear.path in weights:
                tensor = linear.turn(weights[linear.path].to(tensor))  # its device and dtype
            set_tensor(self._originals[linear.path], "weight", tensor)
        self._replaced = []
        for branch in self.block.branches:
            for path in branch.paths if branch.kind in dropped else ():
                set_module(self._module, self._relative[path], _silent(self._originals[path], path, branch))
                self._replaced.append(path)

    @torch.inference_mode()
    def __call__(self, states_BTD: Tensor) -> Tensor:
        """Run the block as it is installed: states_BTD to states_BTD."""
        if states_BTD.shape != self._shape_BTD:
            raise ValueError(
                f"states have shape {tuple(states_BTD.shape)}; this runner takes {self._shape_BTD}"
            )
        result = self._module(states_BTD, *self._call.args, **self._call.kwargs)
        output_BTD: Tensor = result if isinstance(result, Tensor) else result[0]
        return output_BTD

    def record(self, states_BTD: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the block and return also inputs_BTI of every linear layer that ran, by path.

        Layers that read the same tensor return the same memory.
        """
        inputs: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for linear in self.block.linears:
                handle = self._originals[linear.path].register_forward_pre_hook(_keeper(inputs, linear.path))
                hooks.callback(handle.remove)
            output_BTD = self(states_BTD)
        return output_BTD, {path: x.view(*self._shape_BTD[:2], -1) for path, x in inputs.items()}

    def _check(self, weights: Mapping[str, Tensor], dropped: Collection[str]) -> None:
        linears = {linear.path: linear for linear in self.block.linears}
        for path, weight in weights.items():
            if path not in linears:
                raise ValueError(
                    f"{path!r} is no linear layer of {self.block.path}; there are {', '.join(linears)}"
                )
            shape = (linears[path].out_features, linears[path].in_features)
            if weight.shape != shape:
                raise ValueError(
                    f"the weight for {path!r} has shape {tuple(weight.shape)}; give (out, in) = {shape}"
                )
        for kind in dropped:
            if kind not in ("attention", "mlp"):
                raise ValueError(f"branch {kind!r} is unknown; a block has attention and mlp")


def _replaceable(block: Block) -> set[str]:
    branches = {path for branch in block.branches for path in branch.paths}
    return branches | {linear.path for linear in block.linears}


def _silent(original: nn.Module, path: str, branch: Branch) -> StandIn:
    """What stands for a module of a dropped branch: zeros in the form of its output.

    A module that is given the residual stream to add to (as in BLOOM) returns that.
    """
    rows = {linear.path: linear.out_features for linear in branch.linears}
    signature = inspect.signature(original.forward)

    def function(*args: Tensor, **kwargs: Tensor) -> object:
        if path in rows:  # a linear layer that sits on the block itself
            return args[0].new_zeros(*args[0].shape[:-1], rows[path])
        if "residual" in signature.parameters:
            residual: Tensor = signature.bind(*args, **kwargs).arguments["residual"]
            return answer(residual, branch.outputs)
        return answer(torch.zeros_like(args[0] if args else kwargs["hidden_states"]), branch.outputs)

    return StandIn(original, function)


def _keeper(inputs: dict[str, Tensor], path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs[path] = args[0]

    return keep
