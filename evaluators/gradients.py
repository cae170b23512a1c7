"""One backward pass through the dense model, block by block, and the Fisher scores that it gives.

Shapes: B micro-batch, T positions, D hidden, P positions of several sequences, I inputs of a layer, O outputs, V vocabulary.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..spaces.database import LevelDatabase
from ..spaces.replacement import StandIn, set_module
from ..spaces.space import Space, Unit
from ..spaces.structure import Block
from .calibration import host_copy
from .loaded import LoadedBlock
from .runner import BlockRunner

UnitErrors = dict[str, dict[str, float]]
"""Unit name to label to error; what the dense model has is left out."""

_CHUNK = 512  # positions whose logits exist at once


class GradientRunner(BlockRunner):
    """A block runner that can also be passed backwards; takes the arguments of `BlockRunner`."""

    def likelihood_gradient(self, states_BTD: Tensor, rng: np.random.Generator) -> Tensor:
        """Gradient of the log-likelihood of tokens that the model itself draws, by its last hidden states.

        Every position but the last of a sequence draws one token, and the log-likelihoods are summed.

        Args:
            states_BTD: after the last block.
            rng: draws the tokens.

        Returns:
            Gradient (B, T, D) in float32.
        """
        rows_PD = states_BTD[:, :-1].flatten(0, 1)
        parts = torch.split(rows_PD, min(_CHUNK, self.length))
        gradient_PD = torch.cat([self._row_gradients(part_PD, rng) for part_PD in parts])
        shape = (len(states_BTD), states_BTD.shape[1] - 1, self.hidden)
        return nn.functional.pad(gradient_PD.float().view(shape), (0, 0, 0, 1))

    def _row_gradients(self, states_PD: Tensor, rng: np.random.Generator) -> Tensor:
        with torch.enable_grad():
            leaf_PD = states_PD.detach().requires_grad_()
            log_probs_PV = self._backward_logits(leaf_PD).log_softmax(-1)
            drawn_P = _draw(log_probs_PV.detach().exp(), rng)
            likelihood = log_probs_PV.gather(-1, drawn_P[:, None]).sum()
            (gradient_PD,) = torch.autograd.grad(likelihood, leaf_PD)
        return gradient_PD

    def _backward_logits(self, states_PD: Tensor) -> Tensor:
        head = _BackwardHead(self._head)
        if self._norm is not None:
            logits_PV: Tensor = head(self._norm(states_PD))
            return logits_PV
        path = self.structure.ends.head.path
        set_module(self._model, path, head)
        try:
            return self._after_blocks(states_PD)
        finally:
            set_module(self._model, path, self._head)

    def backward(
        self, loaded: LoadedBlock, states_BTD: Tensor, gradient_BTD: Tensor
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Pass a dense block backwards, its activations computed anew.

        Args:
            loaded: the block.
            states_BTD: before it.
            gradient_BTD: by its output, float32.

        Returns:
            The gradient by `states_BTD`, and by layer path its inputs (P, I) with the gradient (P, O) by its
            outputs; all in float32.
        """
        passed: dict[str, tuple[Tensor, Tensor]] = {}
        prefix, module = f"{loaded.block.path}.", self._blocks[loaded.block.index]
        gradient_BTD = gradient_BTD.to(loaded.device)
        # A power of two keeps 16-bit gradients in range and changes no digit.
        scale = 2.0 ** -round(float(gradient_BTD.abs().amax().clamp(min=1e-30).log2()))
        with torch.enable_grad(), ExitStack() as hooks:
            for linear in loaded.block.linears:
                layer = module.get_submodule(linear.path.removeprefix(prefix))
                hooks.callback(layer.register_forward_hook(_keeper(passed, linear.path)).remove)
            leaf_BTD = states_BTD.to(loaded.device).detach().requires_grad_()
            output_BTD, _ = loaded.record(leaf_BTD)
            arriving = (gradient_BTD * scale).to(output_BTD.dtype)
            outputs = [output for _, output in passed.values()]
            leaving_BTD, *found = torch.autograd.grad(output_BTD, [leaf_BTD, *outputs], arriving)
        flat = [gradient.float().flatten(0, -2) / scale for gradient in found]
        inputs = [x.detach().float().flatten(0, -2) for x, _ in passed.values()]
        return leaving_BTD.float() / scale, dict(zip(passed, zip(inputs, flat, strict=True), strict=True))


def fisher_scores(
    runner: GradientRunner,
    space: Space,
    database: LevelDatabase,
    tokens_NT: np.ndarray,
    rng: np.random.Generator,
) -> UnitErrors:
    """Second-order estimate of every level's divergence in nats per token.

    A level changes a layer's output at a position by d; the divergence that this causes is d^T F d / 2 with F the
    Fisher matrix there, the mean of g g^T over tokens that the model draws, g the gradient of their
    log-likelihood. So a level's score is the sum over positions of (g . d)^2 / 2, divided by the tokens predicted:
    exact to second order for one position alone; what positions and layers do together is left out. A dropped
    branch is scored by what it changes in its block's output.

    The gradient of the divergence itself is zero at the dense model and says nothing, hence the likelihood; drawn
    tokens, because the text's own would give the `empirical` Fisher, which is another matrix.

    Time: forwards twice, backwards once, one product per layer and level. Memory: on the device one block with its
    graph and what its levels change in float32; in host memory the hidden states before every block.

    Args:
        runner: of the dense model.
        space: whose units are scored.
        database: its levels.
        tokens_NT: N a multiple of the runner's micro-batch.
        rng: draws tokens.

    Raises:
        ValueError: embeddings or head take levels.

    References:
        Optimal Brain Damage and HAWQ-V2 (arXiv 1911.03852) for the second order; NVIDIA ModelOpt's AutoQuantize and
        AutoRound's AutoScheme for gradient times difference per layer and format; Kunstner et al. (arXiv
        1905.12558) on the empirical Fisher.
    """
    ends = {end.path for end in runner.structure.ends.linears}
    if outside := [unit.name for unit in space.units if ends & set(unit.modules)]:
        raise ValueError(
            f"unit {outside[0]!r} lies outside the blocks, where fisher has no value; leave that score out"
        )
    size = runner.micro_batch
    tokens = [
        torch.from_numpy(tokens_NT[i : i + size].astype(np.int64)) for i in range(0, len(tokens_NT), size)
    ]
    states = [[host_copy(runner.embed(tokens_BT)) for tokens_BT in tokens]]
    for block in runner.structure.blocks:
        with runner.block(block.index) as loaded:
            states.append([host_copy(loaded(states_BTD)) for states_BTD in states[-1]])
    gradients = [host_copy(runner.likelihood_gradient(last.to(runner.device), rng)) for last in states.pop()]
    positions = len(tokens_NT) * (tokens_NT.shape[1] - 1)
    found: UnitErrors = {unit.name: {} for unit in space.units}
    for block in reversed(runner.structure.blocks):
        units = [unit for unit in space.units if unit.block == block.index]
        before = states.pop()
        with runner.block(block.index) as loaded:
            for states_BTD, gradient_BTD in zip(before, gradients, strict=True):
                _add_drops(found, units, loaded, states_BTD, gradient_BTD)
            changes = _changes(units, block, runner, database)
            for i, states_BTD in enumerate(before):
                gradient_BTD, passed = runner.backward(loaded, states_BTD, gradients[i])
                gradients[i].copy_(gradient_BTD)
                for (unit, label, path), change_OI in changes.items():
                    inputs_PI, gradient_PO = passed[path]
                    row = found[unit]
                    row[label] = row.get(label, 0.0) + _squares(gradient_PO, inputs_PI @ change_OI.T)
    return {
        name: {label: total / 2 / positions for label, total in row.items()} for name, row in found.items()
    }


def _squares(gradient_PO: Tensor, difference_PO: Tensor) -> float:
    """Sum over positions of the squared inner product."""
    return float(torch.linalg.vecdot(gradient_PO, difference_PO).double().square().sum())


def _changes(
    units: list[Unit], block: Block, runner: BlockRunner, database: LevelDatabase
) -> dict[tuple[str, str, str], Tensor]:
    """What each level changes in each weight (O, I), by unit, label and layer."""
    device = runner.place(block.index)
    dense = {
        linear.path: linear.turn(runner.checkpoint.tensor(f"{linear.path}.weight").to(device)).float()
        for linear in block.linears
    }
    return {
        (unit.name, label, path): database.load(path, label, device).dense().float() - dense[path]
        for unit in units
        for label in unit.index
        if label not in ("dense", "keep", "drop")
        for path in unit.modules
    }


def _add_drops(
    found: UnitErrors, units: list[Unit], loaded: LoadedBlock, states_BTD: Tensor, gradient_BTD: Tensor
) -> None:
    """Add what each branch's drop changes in the block's output."""
    states_BTD, gradient_BTD = states_BTD.to(loaded.device), gradient_BTD.to(loaded.device)
    for unit in units:
        if "drop" in unit.index:
            loaded.install({})
            whole_BTD = loaded(states_BTD).float()
            loaded.install({}, ("attention", "mlp") if unit.branch == "block" else (unit.branch,))
            change_BTD = loaded(states_BTD).float() - whole_BTD
            row = found[unit.name]
            row["drop"] = row.get("drop", 0.0) + _squares(gradient_BTD, change_BTD)
    loaded.install({})


def _draw(probs_PV: Tensor, rng: np.random.Generator) -> Tensor:
    """One token for every position, by inverting the cumulative distribution."""
    summed_PV = probs_PV.cumsum(-1)
    uniform_P1 = torch.from_numpy(rng.random((len(probs_PV), 1), np.float32)).to(probs_PV.device)
    drawn_P1 = torch.searchsorted(summed_PV, uniform_P1 * summed_PV[:, -1:])
    return drawn_P1.squeeze(-1).clamp(max=probs_PV.shape[-1] - 1)


def _keeper(passed: dict[str, tuple[Tensor, Tensor]], path: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def keep(_: nn.Module, args: Any, output: Tensor) -> None:
        passed[path] = (args[0], output)

    return keep


class _BackwardHead(StandIn):
    """Stands for the head where its logits are differentiated."""

    def forward(self, x: Tensor) -> Tensor:
        product: Callable[[Tensor, nn.Module], Tensor] = _Product.apply
        return product(x, self.original)


class _Product(torch.autograd.Function):
    """The head's product, which has no derivative of its own where it mixes two dtypes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: nn.Module) -> Tensor:
        ctx.head, ctx.dtype = head, x.dtype
        logits: Tensor = head(x)
        return logits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        weight_VD = ctx.head.weight
        return (gradient.to(weight_VD.dtype) @ weight_VD).to(ctx.dtype), None
