"""Small tasks of lm-eval over Python code, and their figures by a plain loop over log-likelihoods.

Shapes: T tokens of prompt and answer, V vocabulary.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import PreTrainedModel

_NAMES = ("width", "height", "value", "index", "parent", "buffer", "path", "count")
_PROMPTS = (
    "class Node:\n    def __init__(self, {0}):\n        self.{0} =",
    "def set(self, {0}):\n    if {0} is None:\n        raise ValueError\n    return",
)


def documents() -> list[dict[str, Any]]:
    """Prompts that a name continues which stands in them, beside names that do not."""
    rng = np.random.default_rng(0)
    found = []
    for prompt in _PROMPTS:
        for name in _NAMES:
            others = rng.choice([other for other in _NAMES if other != name], 3, replace=False)
            choices = rng.permutation([name, *others]).tolist()
            found.append(
                {
                    "prompt": prompt.format(name),
                    "choices": [f" {choice}" for choice in choices],
                    "right": choices.index(name),
                }
            )
    return found


def write_task(folder: Path, name: str, **changes: Any) -> Path:
    """A task file beside its documents: which name follows; `changes` replace keys."""
    lines = "".join(json.dumps(document) + "\n" for document in documents())
    (folder / "names.jsonl").write_text(lines)
    record = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "names.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "right",
        "target_delimiter": "",
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(record))
    return path


def write_likelihood(folder: Path) -> Path:
    """The same documents; the metric is exp of the mean negative log-likelihood of the right names."""
    return write_task(
        folder,
        "likelihood",
        output_type="loglikelihood",
        doc_to_choice=None,
        doc_to_target="{{choices[right]}}",
        metric_list=[{"metric": "perplexity"}],
    )


def log_likelihoods(model: PreTrainedModel, tokenizer: Any) -> list[list[float]]:
    """Of every choice of every document, each by a forward of its own, summed in float64."""
    found = []
    for document in documents():
        prompt = tokenizer(document["prompt"])["input_ids"]
        row = []
        for choice in document["choices"]:
            tokens_T = torch.tensor(tokenizer(document["prompt"] + choice)["input_ids"])
            with torch.inference_mode():
                logits_TV = model(input_ids=tokens_T[None]).logits[0].double()
            picked_T = logits_TV[:-1].log_softmax(-1).gather(1, tokens_T[1:, None])[:, 0]
            row.append(float(picked_T[len(prompt) - 1 :].sum()))
        found.append(row)
    return found


def accuracies(values: list[list[float]]) -> tuple[float, float]:
    """Share of documents whose right choice is likeliest, and likeliest per character."""
    plain = normed = 0
    for document, row in zip(documents(), values, strict=True):
        per_character = [value / len(choice) for value, choice in zip(row, document["choices"], strict=True)]
        plain += int(np.argmax(row)) == document["right"]
        normed += int(np.argmax(per_character)) == document["right"]
    return plain / len(values), normed / len(values)


def perplexity(values: list[list[float]]) -> float:
    """Of the right choices."""
    right = [row[document["right"]] for document, row in zip(documents(), values, strict=True)]
    return math.exp(-math.fsum(right) / len(right))


@contextmanager
def cached_in(folder: Path) -> Iterator[None]:
    """What `datasets` makes of files goes to `folder`, and nothing asks the network."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder))
        patch.setattr("socket.socket.connect", _no_network)
        yield


def _no_network(*_: object) -> None:
    raise AssertionError("the network was asked")
