"""Backward passes through a model, block by block.

Shapes: B sequences of a micro-batch, T positions, D hidden size, P positions of several sequences, I inputs of a layer,
O outputs of a layer, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...spaces.model.replacement import StandIn, set_module
from ..fitness import FitnessConfig, cross_entropy, fitness_of, teacher_chunk
from .kernels import backward_kernels
from .loaded import LoadedBlock
from .runner import BlockRunner

HeadVisitor = Callable[[Tensor, Tensor, Tensor], None]
"""Receives the head's inputs (P, D) and the gradients (P, V) of fitness and likelihood with respect to its outputs."""

_CHUNK = 512  # number of positions whose logits exist at once


class GradientRunner(BlockRunner):
    """A block runner that also computes backward passes; it takes the arguments of `BlockRunner`."""

    def end_gradients(
        self,
        states_BTD: Tensor,
        dense_BTD: Tensor,
        tokens_BT: Tensor,
        fitness: FitnessConfig,
        rng: np.random.Generator,
        *,
        ends: Mapping[str, Tensor] | None = None,
        visit: HeadVisitor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute the gradients of fitness and likelihood with respect to a model's last hidden states.

        Fitness and likelihood are sums over all positions except the last one of each sequence.

        Args:
            states_BTD: hidden states of the model after its last block.
            dense_BTD: hidden states of the dense model, the teacher, after its last block.
            tokens_BT: token ids of the sequences.
            fitness: settings of the fitness that is differentiated.
            rng: generator that draws one token from the model's distribution at every position.
            ends: weights (V, D) of the model's embedding and head by path, where they differ from the dense model's.
            visit: function that is called with each chunk of the head's inputs, and both gradients with respect to its
                outputs.

        Returns:
            Gradients of the fitness and of the log-likelihood of the drawn tokens, (B, T, D) in float32 each.
        """
        rows = (states_BTD[:, :-1].flatten(0, 1), dense_BTD[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten())
        last, dense, targets = (torch.split(row.to(self.device), min(_CHUNK, self.length)) for row in rows)
        found = []
        for part in zip(last, dense, targets, strict=True):
            by_states, by_head = self._row_gradients(*part, fitness, rng, ends or {})
            found.append(by_states)
            if visit is not None:
                visit(*by_head)
        shape = (len(states_BTD), states_BTD.shape[1] - 1, self.hidden)
        fit_BTD, likely_BTD = (
            nn.functional.pad(torch.cat(each).float().view(shape), (0, 0, 0, 1))
            for each in zip(*found, strict=True)
        )
        return fit_BTD, likely_BTD

    def _row_gradients(
        self,
        states_PD: Tensor,
        dense_PD: Tensor,
        targets_P: Tensor,
        fitness: FitnessConfig,
        rng: np.random.Generator,
        ends: Mapping[str, Tensor],
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """Compute the gradients that `end_gradients` returns for a chunk of positions, and those at the head's output.

        Args:
            states_PD: hidden states of the model after its last block.
            dense_PD: hidden states of the dense model, the teacher, after its last block.
            targets_P: ids of the next tokens of the text.
            fitness: settings of the fitness that is differentiated.
            rng: generator that draws one token from the model's distribution at every position.
            ends: weights (V, D) of the model's embedding and head by path, where they differ from the dense model's.

        Returns:
            Two tuples. The first has the gradients (P, D) of the fitness and of the drawn tokens' log-likelihood with
            respect to the states. The second has the head's inputs (P, D), and the gradients (P, V) of the same two
            with respect to the head's outputs.
        """
        divergence = fitness_of(fitness)
        teacher = None
        if divergence is not None:
            with torch.no_grad():
                teacher = teacher_chunk(fitness, self._backward_logits(dense_PD, _BackwardHead(self._head)))
        with self.ends(ends), torch.enable_grad():
            leaf_PD = states_PD.detach().requires_grad_()
            head = _BackwardHead(self._head)
            log_probs_PV = self._backward_logits(leaf_PD, head).log_softmax(-1)
            if divergence is None:
                total = cross_entropy(log_probs_PV, targets_P).sum()
            else:
                assert teacher is not None
                total = divergence(teacher, log_probs_PV).sum()
            by = (leaf_PD, head.passed[1])
            fit_PD, fit = torch.autograd.grad(total, by, retain_graph=True)
            drawn_P = _draw(log_probs_PV.detach().exp(), rng)
            likelihood = log_probs_PV.gather(-1, drawn_P[:, None]).sum()
            likely_PD, likely = torch.autograd.grad(likelihood, by)
        inputs_PD, fit_PV, likely_PV = (
            each.detach().flatten(0, -2) for each in (head.passed[0], fit, likely)
        )
        return (fit_PD, likely_PD), (inputs_PD, fit_PV, likely_PV)

    def _backward_logits(self, states_PD: Tensor, head: "_BackwardHead") -> Tensor:
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
        self, loaded: LoadedBlock, states_BTD: Tensor, gradients: Sequence[Tensor]
    ) -> list[tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]]:
        """Compute the backward pass of a block with the weights installed in it; its activations are computed again.

        Args:
            loaded: block that is loaded and has its weights installed.
            states_BTD: hidden states before the block.
            gradients: gradients of one or more figures with respect to the block's output, (B, T, D) in float32 each.

        Returns:
            For each of these figures, the gradient (B, T, D) with respect to `states_BTD`; and for every layer that
            ran, by path, its inputs (P, I) and the gradient (P, O) with respect to its outputs. All gradients are
            float32.
        """
        passed: dict[str, tuple[Tensor, Tensor]] = {}
        with torch.enable_grad(), backward_kernels(loaded.device), ExitStack() as hooks:
            for linear in loaded.block.linears:
                handle = loaded.layer(linear.path).register_forward_hook(_keeper(passed, linear.path))
                hooks.callback(handle.remove)
            leaf_BTD = states_BTD.to(loaded.device).detach().requires_grad_()
            output_BTD, _ = loaded.record(leaf_BTD)
            inputs = {path: x.detach().flatten(0, -2) for path, (x, _) in passed.items()}
            by = [leaf_BTD, *(output for _, output in passed.values())]
            found = [_scaled_gradients(output_BTD, by, gradient_BTD) for gradient_BTD in gradients]
        return [
            (leaving_BTD, {p: (inputs[p], g.flatten(0, -2)) for p, g in zip(passed, rest, strict=True)})
            for leaving_BTD, *rest in found
        ]


def _scaled_gradients(output: Tensor, by: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
    """Compute gradients in float32 with respect to `by`, from the gradient with respect to `output`.

    The given gradient is scaled by a power of two on the way, which keeps 16-bit floats in range and changes no digit.
    """
    gradient = gradient.to(output.device)
    largest = float(gradient.abs().amax())
    scale = 2.0 ** -round(math.log2(max(largest, 1e-30))) if math.isfinite(largest) else 1.0
    found = torch.autograd.grad(output, by, (gradient * scale).to(output.dtype), retain_graph=True)
    return [each.float() / scale for each in found]


def _draw(probs_PV: Tensor, rng: np.random.Generator) -> Tensor:
    """Draw one token id for every position, by inverting the cumulative distribution."""
    summed_PV = probs_PV.cumsum(-1)
    uniform_P1 = torch.from_numpy(rng.random((len(probs_PV), 1), np.float32)).to(probs_PV.device)
    drawn_P1 = torch.searchsorted(summed_PV, uniform_P1 * summed_PV[:, -1:])
    return drawn_P1.squeeze(-1).clamp(max=probs_PV.shape[-1] - 1)


def _keeper(passed: dict[str, tuple[Tensor, Tensor]], path: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def keep(_: nn.Module, args: Any, output: Tensor) -> None:
        passed[path] = (args[0], output)

    return keep


class _BackwardHead(StandIn):
    """A stand-in for the head whose logits can be differentiated; it keeps the inputs and outputs of its last call."""

    passed: tuple[Tensor, Tensor]
    """Inputs (..., P, D) and outputs (..., P, V) of the last call of the head."""

    def forward(self, x: Tensor) -> Tensor:
        product: Callable[[Tensor, nn.Module], Tensor] = _Product.apply
        logits = product(x, self.original)
        self.passed = (x, logits)
        return logits


class _Product(torch.autograd.Function):
    """The head as a differentiable function.

    PyTorch has no gradient for a product of 16-bit inputs with a float32 result, so it is given here.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: nn.Module) -> Tensor:
        ctx.head, ctx.dtype = head, x.dtype
        logits: Tensor = head(x)
        return logits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        weight_VD = ctx.head.weight
        return (gradient.to(weight_VD.dtype) @ weight_VD).to(ctx.dtype), None
