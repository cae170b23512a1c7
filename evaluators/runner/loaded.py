"""A loaded block, which runs with any weights and any dropped branches.

Shapes: B sequences, T positions, D hidden size, I inputs of a layer.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from ...spaces.levels.cuda_graphs import Replays
from ...spaces.model.replacement import BlockCall, StandIn, answer, set_module, set_tensor
from ...spaces.model.structure import Block, Branch, Linear
from .kernels import compiled
from .launch import Launcher, Pace


class LoadedBlock:
    """One block of a `BlockRunner`, to be used inside the context `BlockRunner.block`.

    Args:
        block: branches and linear layers of the block.
        module: module of the block in the model.
        device: device that the block runs on.
        dtype: type of the block's weights.
        call: function that returns the other arguments that the module needs besides hidden states, given the index of
            the block, the number of sequences and their length in tokens.
        micro_batch: number of sequences that always run together.
        pace: settings of how micro-batches are run.
        replays: recorder of CUDA graphs, used if `pace` asks for replaying.
    """

    def __init__(
        self,
        block: Block,
        module: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        call: Callable[[int, int, int], BlockCall],
        micro_batch: int,
        pace: Pace,
        replays: Replays,
    ) -> None:
        self.block = block
        self.device = device
        self._dtype = dtype
        self._module = module
        self._call = call
        self._micro_batch = micro_batch
        self._pace = pace
        self._replays = replays
        self._relative = {path: path.removeprefix(f"{block.path}.") for path in _replaceable(block)}
        self._originals = {path: module.get_submodule(name) for path, name in self._relative.items()}
        self._forward: Callable[..., Any] = module
        if pace.compiled:
            self._forward = compiled(module)
        self._dense: dict[str, Tensor] = {}
        self._installed: dict[str, Tensor] = {}
        self._dropped: frozenset[str] = frozenset()
        self._launchers: dict[tuple[int, frozenset[str]], Launcher] = {}
        self._places: dict[str, Tensor] = {}

    def load(self, dense: Mapping[str, Tensor]) -> None:
        """Take the dense weights of all layers by path, in the stored layout, and install them.

        With an empty mapping there are no dense weights, and every layer that runs has to be installed.
        """
        self._dense = {linear.path: linear.turn(dense[linear.path]) for linear in self.block.linears if dense}
        if dense:
            self.install({})

    def release(self) -> None:
        """Undo every change of the module and free the weights, except the memory that replayed blocks keep."""
        self._drop(frozenset())
        for linear in self.block.linears:
            module = self._originals[linear.path]
            if linear.path not in self._places:
                set_tensor(module, "weight", torch.empty_like(module.get_parameter("weight"), device="meta"))
        self._installed = {}
        self._dense = {}

    @torch.no_grad()
    def install(self, weights: Mapping[str, Tensor], dropped: Collection[str] = ()) -> None:
        """Set exactly these weights and dropped branches; `install({})` restores the dense block.

        Biases stay as they are. A dropped branch is not computed, its linear layers do not run, and it adds zero to
        the residual stream. A norm that follows the branch (Gemma) still runs on zeros, and gives zeros if it has no
        bias.

        Args:
            weights: weights (out, in) of linear layers by path; all other layers are dense. They are copied only where
                device, dtype, layout or replaying require it.
            dropped: kinds of the branches to drop, `attention`, `mlp` or both.

        Raises:
            ValueError: a path or branch is unknown, a weight has another shape, or a layer that runs has neither a
                given nor a dense weight.
        """
        self._check(weights, dropped)
        self._drop(frozenset(dropped))
        for branch in self.block.branches:
            for linear in branch.linears if branch.kind not in dropped else ():
                weight = weights[linear.path] if linear.path in weights else self._dense[linear.path]
                if self._installed.get(linear.path) is not weight:
                    self._put(linear, weight)
                    self._installed[linear.path] = weight

    @torch.no_grad()
    def __call__(self, states_BTD: Tensor) -> Tensor:
        """Run one micro-batch of hidden states (B, T, D) through the block with the weights that are installed."""
        (output_BTD,) = self.run([states_BTD])
        return output_BTD

    @torch.no_grad()
    def run(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """Run micro-batches of hidden states (B, T, D) of one length; each has the bits that it has when run alone.

        Raises:
            ValueError: a micro-batch has another number of sequences than this block takes.
        """
        for states_BTD in batches:
            if len(states_BTD) != self._micro_batch:
                raise ValueError(
                    f"states have shape {tuple(states_BTD.shape)}; "
                    f"this block takes {self._micro_batch} sequences at a time"
                )
        length = batches[0].shape[1]
        key = (length, self._dropped)
        if key not in self._launchers:
            widest = self._pace.widest(self._micro_batch * length)
            self._launchers[key] = Launcher(
                self._plain, widest, self._replays if self._pace.replayed else None
            )
        return self._launchers[key]([states_BTD.to(self.device) for states_BTD in batches])

    def layer(self, path: str) -> nn.Module:
        """Return the module of a linear layer of the block by its path."""
        return self._originals[path]

    def record(self, states_BTD: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the block; return its output (B, T, D), and by path the inputs (B, T, I) of every linear layer that ran.

        The inputs of layers that read the same tensor share their memory.
        """
        inputs: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for linear in self.block.linears:
                handle = self._originals[linear.path].register_forward_pre_hook(_keeper(inputs, linear.path))
                hooks.callback(handle.remove)
            output_BTD = self._through(self._module, states_BTD.to(self.device))
        return output_BTD, {path: x.view(*states_BTD.shape[:2], -1) for path, x in inputs.items()}

    def _plain(self, states_BTD: Tensor) -> Tensor:
        try:
            return self._through(self._forward, states_BTD)
        except TorchDynamoException as error:
            raise ValueError(
                f"{self.block.path} cannot be compiled ({type(error).__name__}); set evaluation.compile=false"
            ) from error

    def _through(self, forward: Callable[..., Any], states_BTD: Tensor) -> Tensor:
        call = self._call(self.block.index, *states_BTD.shape[:2])
        result = forward(states_BTD, *call.args, **call.kwargs)
        output_BTD: Tensor = result if isinstance(result, Tensor) else result[0]
        return output_BTD

    def _put(self, linear: Linear, weight: Tensor) -> None:
        turned = linear.turn(weight.to(self.device, self._dtype))
        if not self._pace.replayed:
            set_tensor(self._originals[linear.path], "weight", turned)
        elif linear.path in self._places:
            self._places[linear.path].copy_(turned)
        else:
            self._places[linear.path] = turned.clone()
            set_tensor(self._originals[linear.path], "weight", self._places[linear.path])

    def _drop(self, dropped: frozenset[str]) -> None:
        if dropped == self._dropped:
            return
        for branch in self.block.branches:
            for path in branch.paths:
                module = self._originals[path]
                if branch.kind in dropped:
                    module = _Silent(module, path, branch)
                set_module(self._module, self._relative[path], module)
        self._dropped = dropped

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
        for branch in self.block.branches:
            for path in (linear.path for linear in branch.linears if branch.kind not in dropped):
                if path not in weights and path not in self._dense:
                    raise ValueError(
                        f"{path} has no weight; install one, or load the block with its dense weights"
                    )
        for kind in dropped:
            if kind not in ("attention", "mlp"):
                raise ValueError(f"branch {kind!r} is unknown; a block has attention and mlp")


def _replaceable(block: Block) -> set[str]:
    """Return the paths of all modules of a block that may be replaced or given other weights."""
    branches = {path for branch in block.branches for path in branch.paths}
    return branches | {linear.path for linear in block.linears}


class _Silent(StandIn):
    """A stand-in for a module of a dropped branch, which returns zeros in the form of the module's output.

    A module that is given the residual stream to add to (as in BLOOM) returns that stream. Attributes are plain
    numbers, so that blocks share one compilation.
    """

    def __init__(self, original: nn.Module, path: str, branch: Branch) -> None:
        super().__init__(original)
        names = list(inspect.signature(original.forward).parameters)
        self.rows = {linear.path: linear.out_features for linear in branch.linears}.get(path)
        self.residual = names.index("residual") if "residual" in names else None
        self.outputs = branch.outputs

    def forward(self, *args: Tensor, **kwargs: Tensor) -> object:
        if self.rows is not None:  # a linear layer that is a child of the block itself
            return args[0].new_zeros(*args[0].shape[:-1], self.rows)
        if self.residual is not None:
            residual = kwargs["residual"] if "residual" in kwargs else args[self.residual]
            return answer(residual, self.outputs)
        return answer(torch.zeros_like(args[0] if args else kwargs["hidden_states"]), self.outputs)


def _keeper(inputs: dict[str, Tensor], path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs[path] = args[0]

    return keep
