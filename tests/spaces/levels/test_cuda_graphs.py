"""Recorded functions give what plain calls give."""

import pytest
import torch
from torch import Tensor

from paretopress.spaces.levels.cuda_graphs import Replays


def chain(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    for _ in range(5):
        x = (x * y + 1).sin()
    return x, x @ y.T


def test_on_a_cpu_functions_are_called() -> None:
    replays, x, y = Replays(), torch.randn(3, 4), torch.randn(3, 4)
    for _ in range(3):
        assert all(map(torch.equal, replays(chain, x, y), chain(x, y)))
        x = x + 1


@pytest.mark.gpu
def test_every_call_of_every_shape_has_the_bits_of_a_plain_one() -> None:
    replays, generator = Replays(), torch.Generator("cuda").manual_seed(0)
    for step in range(12):
        rows = (3, 64, 1000)[step % 3]
        x, y = torch.randn((2, rows, 65), generator=generator, device="cuda")
        before = x.clone()
        assert all(map(torch.equal, replays(chain, x, y), chain(x, y)))
        assert torch.equal(x, before)


@pytest.mark.gpu
def test_what_cannot_be_recorded_is_called() -> None:
    def from_the_host(x: Tensor) -> tuple[Tensor, ...]:
        return (x * torch.tensor(2.0, device=x.device),)

    replays, x = Replays(), torch.randn(8, device="cuda")
    stream = torch.cuda.current_stream()
    for _ in range(4):
        (found,) = replays(from_the_host, x)
        assert torch.equal(found, 2 * x)
        assert torch.cuda.current_stream() == stream
        assert all(map(torch.equal, replays(chain, x[None], x[None]), chain(x[None], x[None])))
