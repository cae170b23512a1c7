"""The head of a model, a linear layer whose logits are float32."""

import torch
from torch import Tensor, nn


class Head(nn.Module):
    """A linear head that multiplies in its own dtype, and accumulates and returns float32."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        parameters = dict(linear.named_parameters())
        self.register_parameter("weight", parameters["weight"])
        self.register_parameter("bias", parameters.get("bias"))

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (..., V) in float32 from hidden states `x` (..., D)."""
        flat_PD = x.reshape(-1, x.shape[-1])
        logits_PV = product(flat_PD, self.weight)
        if self.bias is not None:
            logits_PV = logits_PV + self.bias.float()
        return logits_PV.view(*x.shape[:-1], -1)


def product(x_PD: Tensor, weight_VD: Tensor) -> Tensor:
    """Compute logits (P, V) in float32, accumulated in float32, from inputs and a weight of the same dtype."""
    if x_PD.is_cuda and x_PD.dtype != torch.float32:
        return torch.mm(x_PD, weight_VD.T, out_dtype=torch.float32)
    return torch.mm(x_PD.float(), weight_VD.T.float())
