"""Whether the dense model works at all, before any work: most later surprises show here."""

import math
import time
from dataclasses import dataclass

from ..trial import Fidelity
from .population import PopulationEvaluator


@dataclass(frozen=True, slots=True)
class Sanity:
    """What the dense model did on a few calibration sequences.

    Attributes:
        perplexity: of the dense model.
        tokens_per_second: through the whole model, one candidate at a time.
    """

    perplexity: float
    tokens_per_second: float


def check_dense(evaluator: PopulationEvaluator, vocabulary: int, sequences: int = 8) -> Sanity:
    """Run the dense model on the first calibration sequences.

    Raises:
        ValueError: a token beyond the vocabulary, NaN or infinity in the output, or a perplexity no better
            than guessing: wrong tokenizer, damaged weights, or a number format that overflows.
    """
    pool = evaluator.data["calibration"]
    if (largest := int(pool.tokens.max())) >= vocabulary:
        raise ValueError(
            f"the text has token {largest} but the model knows {vocabulary}; the tokenizer is another model's"
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
            f"the dense model gives {loss} in {evaluator.runner.dtype}; choose evaluation.dtype=bfloat16 or float32"
        )
    if loss > math.log(vocabulary):
        raise ValueError(
            f"the dense model's perplexity is {math.exp(min(loss, 700)):.4g}, worse than guessing among {vocabulary} "
            "tokens; check the tokenizer, `data.bos` and the weights"
        )
    return Sanity(math.exp(loss), fidelity.tokens / seconds)
