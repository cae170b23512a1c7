"""The fitness functions that a search minimises, computed at every position over the whole vocabulary.

Logits and results are float32. Shapes: P positions, V vocabulary, K most likely tokens of the teacher.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class FitnessConfig(BaseModel):
    """The fitness that the search minimises, a mean over the positions of the text.

    Attributes:
        name: name of the fitness: `kl` (exact Kullback-Leibler divergence from the dense model), `topk-kl` (the same
            over the dense model's `k` most likely tokens, all other tokens counted as one) or `cross-entropy` (of the
            text, without the dense model).
        k: number of most likely tokens that `topk-kl` tells apart.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Literal["kl", "topk-kl", "cross-entropy"] = "kl"
    k: int = Field(default=512, ge=1)


@dataclass(frozen=True)
class TeacherChunk:
    """The teacher's distributions at a chunk of positions, computed once for all candidates.

    Attributes:
        log_probs_PV: log-softmax of the teacher's logits.
        probs_PV: exponentials of the log-probabilities.
        negentropy_P: sum of p log p over the vocabulary, in nats.
        top_PK: ids of the teacher's K most likely tokens, for `topk-kl` only.
    """

    log_probs_PV: Tensor
    probs_PV: Tensor
    negentropy_P: Tensor
    top_PK: Tensor | None = None


Fitness = Callable[[TeacherChunk, Tensor], Tensor]
"""A function of the teacher's chunk and a candidate's log-probabilities (P, V) that returns the fitness (P,)."""


def kl_divergence(teacher: TeacherChunk, log_probs_PV: Tensor) -> Tensor:
    """Return KL(teacher || candidate) in nats at every position, (P,).

    Time: one pass over the candidate's log-probabilities.
    """
    cross_P: Tensor = torch.linalg.vecdot(teacher.probs_PV, log_probs_PV)
    return teacher.negentropy_P - cross_P


def topk_kl_divergence(teacher: TeacherChunk, log_probs_PV: Tensor) -> Tensor:
    """Return the KL over the teacher's most likely tokens and one bucket for all others, in nats, (P,).

    It is a lower bound of the exact KL. Unlike a divergence that is renormalised over the most likely tokens, it
    counts probability that the candidate moves to the other tokens.
    """
    assert teacher.top_PK is not None
    top_PK = teacher.log_probs_PV.gather(-1, teacher.top_PK)
    other_PK = log_probs_PV.gather(-1, teacher.top_PK)
    head = (top_PK.exp() * (top_PK - other_PK)).sum(-1)
    tail, other_tail = (1 - x.exp().sum(-1) for x in (top_PK, other_PK))
    floor = torch.finfo(torch.float32).tiny
    return head + tail.clamp(min=0) * (tail.clamp(min=floor).log() - other_tail.clamp(min=floor).log())


def cross_entropy(log_probs_PV: Tensor, targets_P: Tensor) -> Tensor:
    """Return the negative log-likelihood of the next token in nats at every position, (P,)."""
    return -log_probs_PV.gather(-1, targets_P[:, None]).squeeze(-1)


def teacher_chunk(config: FitnessConfig, logits_PV: Tensor) -> TeacherChunk:
    """Compute the teacher's distributions that the configured fitness needs from a chunk of the teacher's logits."""
    log_probs_PV = logits_PV.log_softmax(-1)
    probs_PV = log_probs_PV.exp()
    negentropy_P = torch.linalg.vecdot(probs_PV, log_probs_PV)
    top_PK = None
    if config.name == "topk-kl":
        top_PK = log_probs_PV.topk(min(config.k, log_probs_PV.shape[-1] - 1), -1).indices
    return TeacherChunk(log_probs_PV, probs_PV, negentropy_P, top_PK)


FITNESSES: dict[str, Fitness | None] = {
    "kl": kl_divergence,
    "topk-kl": topk_kl_divergence,
    "cross-entropy": None,
}
"""The divergence of each fitness, by the name in `FitnessConfig`; None for the one that needs no teacher."""


def fitness_of(config: FitnessConfig) -> Fitness | None:
    """Return the divergence that the configuration names, or None for cross-entropy, which needs no teacher."""
    return FITNESSES[config.name]
