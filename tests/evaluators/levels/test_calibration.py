"""Gram matrices against float64; states through the blocks are tested with the database's build."""

import pytest
import torch

from paretopress.evaluators.levels.calibration import POSITIONS, add_gram


def inputs(positions: int, width: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """All positive in some columns, where sums that cut off would drift."""
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(positions, width, generator=generator, device=device)
    x[:, ::3] = x[:, ::3].abs()
    return x.to(dtype)


def relative_error(found: torch.Tensor, x: torch.Tensor) -> float:
    """Largest error in units of the roots of the diagonal."""
    exact = x.double().T @ x.double()
    size = exact.diagonal().sqrt()
    return float(((found.double() - exact).abs() / size[:, None] / size).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_grams_are_float32_products_and_add_up(dtype: torch.dtype) -> None:
    x = inputs(300, 40, dtype, "cpu")
    one = add_gram(None, x[:200])
    assert one.dtype == torch.float32
    assert add_gram(one, x[200:]) is one
    assert relative_error(one, x) < 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("positions", [100, 2048, 8192, 20_000])
def test_tensor_cores_cut_off_little(dtype: torch.dtype, positions: int) -> None:
    """A product loses half of the last place (2^-23) of a sum that is half as large on average.

    The rest is the rounding of float32 units.
    """
    x = inputs(positions, 1024, dtype, "cuda")
    cores, units = (relative_error(add_gram(None, part), x) for part in (x, x.float()))
    lost = min(positions, POSITIONS) * 2.0**-25
    assert cores < lost + units, f"tensor cores {cores:.1e}, float32 units {units:.1e}, cut off {lost:.1e}"
