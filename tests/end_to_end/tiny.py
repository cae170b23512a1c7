"""A language model that is trained in two seconds, text for it, and configurations that run in less."""

import json
import os
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.architectures import make_config, random_model

ROOT = Path(__file__).parents[2]
LENGTH = 64
_CHARACTERS = 600
_DOCUMENTS = 160
_with_tokens: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
_TEXT = (
    "argparse",
    "ast",
    "cmd",
    "csv",
    "inspect",
    "json/decoder",
    "pathlib/__init__",
    "tarfile",
    "textwrap",
)


def write_text(path: Path) -> Path:
    """Pieces of the standard library as JSON lines, one document each."""
    folder = Path(sysconfig.get_path("stdlib"))
    sources = [folder / f"{name}.py" for name in _TEXT if (folder / f"{name}.py").is_file()]
    text = "".join(source.read_text(encoding="ascii", errors="ignore") for source in sources)
    pieces = [text[i : i + _CHARACTERS] for i in range(0, _DOCUMENTS * _CHARACTERS, _CHARACTERS)]
    path.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces))
    return path


def save_tiny(folder: Path, text: Path) -> Path:
    """Train and save a Llama of two blocks over bytes; its dense perplexity is far below guessing."""
    tokenizer = _bytes_tokenizer()
    tokenizer.save_pretrained(folder)
    lines = [json.loads(line)["text"] for line in text.read_text().splitlines()]
    ids_P = torch.tensor([i for line in lines for i in tokenizer(line)["input_ids"]])
    model: Any = random_model(
        make_config(
            "llama",
            vocab_size=len(tokenizer),
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=None,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4 * LENGTH,
            tie_word_embeddings=True,
        )
    )
    _train(model, ids_P)
    model.to(torch.float16).save_pretrained(folder)
    return folder


def _bytes_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_tokens(tokenizer_object=tokenizer, bos_token="<|endoftext|>")


def _train(model: PreTrainedModel, ids_P: torch.Tensor, steps: int = 150) -> None:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(steps):
        starts_B = torch.randint(len(ids_P) - LENGTH, (8,), generator=generator)
        batch_BT = torch.stack([ids_P[s : s + LENGTH] for s in starts_B.tolist()])
        loss = model(input_ids=batch_BT, labels=batch_BT).loss
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def tiny_config(model: Path, text: Path, **changes: Any) -> dict[str, Any]:
    """A run over bits that takes about a second; keys of `changes` replace those of the top level."""
    content: dict[str, Any] = {
        "model": str(model),
        "name": "tiny",
        "data": {
            "source": str(text),
            "length": LENGTH,
            "calibration": {"tokens": 16 * LENGTH},
            "validation": {"tokens": 24 * LENGTH},
            "heldout": {"tokens": 24 * LENGTH},
        },
        "space": {"levels": ["w2g16", "w3g16", "w4g16", "w6g16"]},
        "builder": {"quantizer": "rtn", "tokens": 4 * LENGTH},
        "evaluation": {"device": "cpu", "dtype": "float32", "threads": 1, "micro_batch": 4},
        "budgets": [{"bits": 4.0}],
        "archive_tokens": 8 * LENGTH,
        "search": [evolution()],
    }
    return content | changes


FRONTIER: dict[str, Any] = {
    "method": "frontier",
    "tokens": 2 * LENGTH,
    "around": 2 * LENGTH,
    "check": 2 * LENGTH,
    "offspring": 4,
    "rounds": 2,
}


def evolution(generations: int = 4, **changes: Any) -> dict[str, Any]:
    """A short evolution in two stages."""
    stages = {"survivors": [3, 1], "tokens": [2 * LENGTH, 8 * LENGTH]}
    return {"method": "evolution", "generations": generations, "offspring": 8, **stages} | changes


def write_config(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a configuration."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False))
    return path


def subprocess_environment() -> dict[str, str]:
    """The environment of a child that imports this checkout; settings of hub and terminal do not reach it."""
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")
    }
    return inherited | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TERM": "xterm-256color"}
