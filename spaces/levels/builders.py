"""Builders: from a weight and its Hessian to packed levels, as pure functions.

Shapes: O outputs, I inputs.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from . import masks
from .cuda_graphs import Replays
from .factor import factorize
from .ggml_quantizer import quantize
from .grids import ScaleRule, round_to_nearest
from .labels import Scheme, parse_label
from .layer_error import layer_error
from .packed import Packed, Solution, pack_level
from .solver import Lane, Method, solve

__all__ = ["BuilderConfig", "build", "build_layers", "layer_error"]


REVISION = 2
"""Raised whenever the same weight, Hessian and configuration give another level than before."""


class BuilderConfig(BaseModel):
    """How levels are made.

    Attributes:
        quantizer: `gptq` compensates rounding errors by the Hessian; `rtn` rounds to the nearest.
        pruner: `sparsegpt` chooses and compensates by the Hessian; `wanda` (|w| times the input's norm, per
            output) and `magnitude` (over the layer) only choose.
        damp: part of the Hessian's mean diagonal that is added to it.
        column_block: width of the blocks of columns in which SparseGPT chooses an unstructured mask and GPTQ updates lazily.
        scales: `minmax` covers all weights of a group, as EvoPress does; `mse` shrinks the range for the least
            squared error: with GPTQ on the quickstart model 47 %, 30 %, 14 % and 5 % less output error at 2, 3,
            4 and 5 bits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    quantizer: Literal["gptq", "rtn"] = "gptq"
    pruner: Literal["sparsegpt", "wanda", "magnitude"] = "sparsegpt"
    damp: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    column_block: int = Field(default=128, ge=1)
    scales: ScaleRule = "mse"

    def needs_hessian(self, scheme: Scheme) -> bool:
        """Whether a level of this scheme cannot be built from the weight alone."""
        prunes = scheme.sparsity is not None and self.pruner != "magnitude"
        return prunes or (scheme.grid is not None and self.quantizer == "gptq")


_DEFAULT = BuilderConfig()


def build(
    weight: Tensor,
    hessian: Tensor | None,
    labels: Iterable[str],
    *,
    config: BuilderConfig = _DEFAULT,
    dtype: torch.dtype | None = None,
) -> dict[str, Packed]:
    """`build_layers` for one layer: label to level; `dtype` is by default the weight's."""
    return build_layers({"": weight}, hessian, {"": labels}, config=config, dtype=dtype or weight.dtype)[""]


def build_layers(
    weights: Mapping[str, Tensor],
    hessian: Tensor | None,
    labels: Mapping[str, Iterable[str]],
    *,
    config: BuilderConfig,
    dtype: torch.dtype,
    replays: Replays | None = None,
) -> dict[str, dict[str, Packed]]:
    """Build the levels of linear layers that read the same inputs.

    A level depends on the weight, the Hessian and the configuration alone, bit for bit, not on the other labels and
    layers. Sparse and quantised levels (`2:4+w4g128`) are solved jointly when both parts compensate; a mask of
    Wanda or magnitude is fixed first, and GPTQ then compensates both the pruned and the rounded weights. llama.cpp's
    types come from its own quantiser, the Hessian's diagonal being the importance of its inputs.

    Args:
        weights: layer to (O, I), any float type; computed with in float32 on its device.
        hessian: (I, I), sum or mean of x x^T over calibration inputs, on the same device; None if no label
            needs it.
        labels: layer to its levels, of `spaces/levels/labels.py`.
        config: quantiser, pruner, scales and their settings.
        dtype: the type the model runs in; a float32 model stores float16.
        replays: recordings to use again where layers of the same shapes are built one after the other.

    Returns:
        layer to label to level, in the orders given.

    Raises:
        ValueError: an unknown label; shapes that do not fit; values that are not finite or beyond `dtype`; a
            pattern that does not divide the inputs; a Hessian that is missing or cannot be factorized.
    """
    storage = torch.float16 if dtype == torch.float32 else dtype
    works = {layer: weight.detach().float() for layer, weight in weights.items()}
    schemes = {
        (layer, label): parse_label(label) for layer in works for label in dict.fromkeys(labels[layer])
    }
    for layer, work in works.items():
        named = {label: scheme for (where, label), scheme in schemes.items() if where == layer}
        _check(work, hessian, named, storage, config)
    importance = None if hessian is None else hessian.diagonal()
    lanes = {
        key: _lane(works[key[0]], hessian, scheme, config)
        for key, scheme in schemes.items()
        if scheme.blocks is None
    }
    compensated = {key: lane for key, lane in lanes.items() if lane.sparsity or lane.grid}
    if compensated:
        assert hessian is not None
        factor = factorize(hessian.detach(), config.damp)
        method = Method(storage, config.column_block, config.scales)
        solved = solve(list(compensated.values()), factor, method, replays or Replays())
        solutions = dict(zip(compensated, solved, strict=True))
    else:
        solutions = {}
    built: dict[str, dict[str, Packed]] = {layer: {} for layer in works}
    for (layer, label), scheme in schemes.items():
        if scheme.blocks is not None:
            stored = quantize(works[layer], scheme.blocks, importance)
            shape = (works[layer].shape[0], works[layer].shape[1])
            built[layer][label] = Packed(label, shape, {"blocks": stored})
            continue
        lane = lanes[layer, label]
        solution = solutions.get((layer, label)) or Solution(lane.weight_OI.to(storage), lane.mask_OI)
        if scheme.grid is not None and lane.grid is None:
            weight = solution.stored.float() if lane.sparsity else lane.weight_OI
            solution = round_to_nearest(weight, scheme.grid, config.scales, storage, solution.mask)
        built[layer][label] = pack_level(label, solution, storage)
    return built


def _lane(weight_OI: Tensor, hessian: Tensor | None, scheme: Scheme, config: BuilderConfig) -> Lane:
    """What of a scheme compensates errors; what does not is a mask now, or rounding afterwards."""
    grid = scheme.grid if config.quantizer == "gptq" else None
    if scheme.sparsity is None or config.pruner == "sparsegpt":
        return Lane(weight_OI, scheme.sparsity, grid=grid)
    if config.pruner == "magnitude":
        return Lane(weight_OI, mask_OI=masks.magnitude(weight_OI, scheme.sparsity), grid=grid)
    assert hessian is not None
    return Lane(weight_OI, mask_OI=masks.wanda(weight_OI, hessian, scheme.sparsity), grid=grid)


def _check(
    weight: Tensor,
    hessian: Tensor | None,
    schemes: Mapping[str, Scheme],
    dtype: torch.dtype,
    config: BuilderConfig,
) -> None:
    if dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"levels cannot be stored as {dtype}; use float16, bfloat16 or float32")
    if weight.ndim != 2 or not weight.numel():
        raise ValueError(f"the weight has shape {tuple(weight.shape)}; a linear layer's is (outputs, inputs)")
    largest = float(weight.abs().amax())
    if not largest <= torch.finfo(dtype).max:
        raise ValueError(
            f"the weight reaches {largest:g}, beyond {dtype}; load the model in bfloat16 or repair it"
        )
    inputs = weight.shape[1]
    for label, scheme in schemes.items():
        if inputs % scheme.multiple:
            raise ValueError(
                f"level {label!r} needs a multiple of {scheme.multiple} inputs, the layer has {inputs}; "
                "leave the level out for this layer"
            )
        if hessian is None and config.needs_hessian(scheme):
            raise ValueError(
                f"level {label!r} needs a Hessian with {config.quantizer} and {config.pruner}; "
                "pass one or use rtn and magnitude"
            )
    if hessian is not None:
        if hessian.shape != (inputs, inputs):
            raise ValueError(
                f"the Hessian has shape {tuple(hessian.shape)}; {inputs} inputs need a square of that"
            )
        if not bool(hessian.isfinite().all()):
            raise ValueError(
                "the Hessian is not finite; the calibration activations overflow, use float32 sums"
            )
