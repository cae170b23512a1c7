"""A check, before any work, that the dense model gives sensible predictions; it finds most causes of later failures."""

import math
import time
from dataclasses import dataclass

from ..trial import Fidelity
from .population import PopulationEvaluator


@dataclass(frozen=True, slots=True)
class Sanity:
    """Result of running the dense model on a few calibration sequences.

    Attributes:
        perplexity: perplexity of the dense model on these sequences.
        tokens_per_second: speed of the whole model when it evaluates a single candidate.
    """

    perplexity: float
    tokens_per_second: float


def check_dense(evaluator: PopulationEvaluator, vocabulary: int, sequences: int = 8) -> Sanity:
    """Run the dense model on the first calibration sequences.

    Args:
        evaluator: evaluator of the model.
        vocabulary: number of tokens that the model knows.
        sequences: number of sequences to run, rounded down to whole micro-batches but at least one micro-batch.

    Raises:
        ValueError: the text has a token beyond the vocabulary, the cross-entropy is not finite, or the perplexity is
            worse than guessing. Usual causes are a wrong tokenizer, damaged weights, or a dtype that overflows.
    """
    pool = evaluator.data["calibration"]
    if (largest := int(pool.tokens.max())) >= vocabulary:
        raise ValueError(
            f"the text has token {largest}, but the vocabulary of the model has {vocabulary}; give the model its own tokenizer"
        )
    size = evaluator.runner.micro_batch
    count = min(max(sequences // size, 1) * size, len(pool.tokens))
    fidelity = Fidelity(0, 0, count, evaluator.runner.length)
    began = time.perf_counter()
    _, (losses,) = evaluator.measure([{}], fidelity)
    seconds = time.perf_counter() - began
    loss = math.fsum(losses) / len(losses)
    if not math.isfinite(loss):
        raise ValueError(
            f"the dense model's cross-entropy is {loss} in {evaluator.runner.dtype}; choose evaluation.dtype=bfloat16 or float32"
        )
    if loss > math.log(vocabulary):
        raise ValueError(
            f"the dense model's perplexity is {math.exp(min(loss, 700)):.4g}, worse than guessing among {vocabulary} "
            "tokens; check the tokenizer, `data.bos` and the weights"
        )
    return Sanity(math.exp(loss), fidelity.tokens / seconds)
