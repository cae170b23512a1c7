"""Divergences against float64 definitions."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from paretopress.evaluators.fitness import (
    FITNESSES,
    FitnessConfig,
    cross_entropy,
    fitness_of,
    kl_divergence,
    teacher_chunk,
    topk_kl_divergence,
)


def logits(noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Teacher and candidate logits (P, V) that look like a language model's, `noise` apart."""
    generator = torch.Generator().manual_seed(seed)
    teacher = 3 * torch.randn(64, 8192, generator=generator)
    return teacher, teacher + noise * torch.randn(64, 8192, generator=generator)


def kl64(teacher: Tensor, student: Tensor) -> Tensor:
    p, q = (x.double().log_softmax(-1) for x in (teacher, student))
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("noise", [0.003, 0.03, 0.3, 1.0])
def test_kl_agrees_with_float64(noise: float) -> None:
    teacher, student = logits(noise)
    found = kl_divergence(teacher_chunk(FitnessConfig(), teacher), student.log_softmax(-1)).double().mean()
    expected = kl64(teacher, student).mean()
    assert abs(found - expected) < 1e-7 + 1e-5 * expected


def test_kl_of_the_teacher_with_itself_is_zero() -> None:
    teacher, _ = logits(0)
    chunk = teacher_chunk(FitnessConfig(), teacher)
    assert kl_divergence(chunk, teacher.log_softmax(-1)).abs().max() == 0


def test_topk_kl_is_the_kl_of_the_merged_distribution() -> None:
    teacher, student = logits(0.5)
    config = FitnessConfig(name="topk-kl", k=16)
    chunk = teacher_chunk(config, teacher)
    found = topk_kl_divergence(chunk, student.log_softmax(-1)).double()
    p, q = (x.double().softmax(-1) for x in (teacher, student))
    order = p.argsort(-1, descending=True)
    merged = [
        torch.cat([x.gather(-1, order)[:, :16], x.gather(-1, order)[:, 16:].sum(-1, keepdim=True)], -1)
        for x in (p, q)
    ]
    expected = (merged[0] * (merged[0] / merged[1]).log()).sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert (found <= kl64(teacher, student) + 1e-6).all()


def test_a_top_k_beyond_the_vocabulary_is_the_exact_kl() -> None:
    teacher, student = (x[:, :100] for x in logits(0.5))
    chunk = teacher_chunk(FitnessConfig(name="topk-kl", k=5000), teacher)
    found = topk_kl_divergence(chunk, student.log_softmax(-1)).double()
    torch.testing.assert_close(found, kl64(teacher, student), rtol=1e-3, atol=1e-6)


def test_cross_entropy_is_the_negative_log_likelihood() -> None:
    _, student = logits(1.0)
    targets = torch.arange(64)
    expected = torch.nn.functional.cross_entropy(student.double(), targets, reduction="none")
    torch.testing.assert_close(
        cross_entropy(student.log_softmax(-1), targets).double(), expected, rtol=1e-5, atol=1e-5
    )
    assert fitness_of(FitnessConfig(name="cross-entropy")) is None


def test_the_registry_holds_what_the_configuration_names() -> None:
    names = get_args(FitnessConfig.model_fields["name"].annotation)
    assert tuple(FITNESSES) == names
    assert all(fitness_of(FitnessConfig(name=name)) is FITNESSES[name] for name in names)
