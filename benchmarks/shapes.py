"""Models of known shapes with random weights, and random text that is tokenised already.

A model is written shard by shard, so it may be larger than the memory of device and host. A model whose folder is
complete is used again by the next call.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import LlamaConfig

BLOCKS_PER_SHARD = 2
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Shape:
    """Dimensions of a Llama model.

    Attributes:
        blocks: number of decoder blocks.
        hidden: size of the residual stream.
        mlp: inner size of the MLP.
        heads: number of query heads.
        kv_heads: number of key and value heads.
        vocabulary: number of tokens in the vocabulary.
        tied: whether embedding and head are one tensor.
        length: number of tokens per sequence in the benchmarks.
        levels: labels of the levels that the benchmarks build.
    """

    blocks: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    length: int = 8192
    levels: tuple[str, ...] = ("w2g128", "w3g128", "w4g128", "w5g128", "w6g128")

    @property
    def config(self) -> LlamaConfig:
        """The `transformers` configuration of a Llama model with these dimensions."""
        return LlamaConfig(
            num_hidden_layers=self.blocks,
            hidden_size=self.hidden,
            intermediate_size=self.mlp,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.hidden // self.heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=max(self.length, 2048),
            tie_word_embeddings=self.tied,
            architectures=["LlamaForCausalLM"],
            dtype="bfloat16",
        )


SHAPES: Mapping[str, Shape] = {
    "tiny": Shape(4, 128, 256, 4, 2, 512, tied=True, length=128),
    "llama-3.2b": Shape(28, 3072, 8192, 24, 8, 128_256, tied=True),
    "llama-8b": Shape(32, 4096, 14_336, 32, 8, 128_256, tied=False),
    # Fewer levels, so that model and levels together stay under 45 GB of disk.
    "llama-13b": Shape(40, 5120, 13_824, 40, 40, 32_000, tied=False, levels=("w2g128", "w3g128", "w4g128")),
}


def prepare(folder: Path, shape: Shape, rows: int) -> Path:
    """Make model and text in `folder` where they are missing, and return the path of the text.

    The text has `rows` rows of the shape's length, each a document.
    """
    if not (folder / INDEX).exists():
        make_model(folder, shape.config)
    text = folder / f"text-{shape.length}x{rows}.safetensors"
    if not text.exists():
        make_text(text, shape.vocabulary, rows, shape.length)
    return text


def make_model(folder: Path, config: LlamaConfig) -> None:
    """Write a checkpoint with random weights.

    The model predicts a repetition of the last token, so that it does better than guessing on the text of `make_text`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    _write_tokenizer(folder, config.vocab_size)
    places: dict[str, str] = {}
    for name, tensors in _shards(config):
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, name))
    size = sum(path.stat().st_size for path in folder.glob("model-*.safetensors"))
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index))


def _write_tokenizer(folder: Path, vocabulary: int) -> None:
    tokenizer = Tokenizer(WordLevel({str(i): i for i in range(vocabulary)}, unk_token="0"))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


class _Random:
    """Source of normally distributed weights in bfloat16, drawn on the GPU if there is one."""

    def __init__(self) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.generator = torch.Generator(self.device).manual_seed(0)

    def normal(self, rows: int, columns: int, deviation: float) -> Tensor:
        made = torch.empty(rows, columns, dtype=torch.bfloat16, device=self.device)
        return made.normal_(0, deviation, generator=self.generator).cpu()


def _shards(config: LlamaConfig) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield file name and tensors of every shard: embedding, head and last norm first, then a few blocks at a time."""
    random, hidden = _Random(), config.hidden_size
    embedding = random.normal(config.vocab_size, hidden, 2.0)
    # This scale puts a token's own logit 2 above the log-sum of all others; with tied ends the norm has to apply it.
    scale = (math.log(config.vocab_size) + 2) / (2 * hidden)
    ends = {"model.embed_tokens.weight": embedding}
    if not config.tie_word_embeddings:
        ends["lm_head.weight"] = embedding * scale
    norm = scale if config.tie_word_embeddings else 1.0
    ends["model.norm.weight"] = torch.full((hidden,), norm, dtype=torch.bfloat16)
    yield "model-ends.safetensors", ends
    for first in range(0, config.num_hidden_layers, BLOCKS_PER_SHARD):
        shard: dict[str, Tensor] = {}
        for block in range(first, min(first + BLOCKS_PER_SHARD, config.num_hidden_layers)):
            shard |= _block(config, block, random)
        yield f"model-{first:03d}.safetensors", shard


def _block(config: LlamaConfig, block: int, random: _Random) -> dict[str, Tensor]:
    hidden, mlp = config.hidden_size, config.intermediate_size
    size = config.head_dim or hidden // config.num_attention_heads
    queries = config.num_attention_heads * size
    keys = (config.num_key_value_heads or config.num_attention_heads) * size
    shapes = {
        "self_attn.q_proj": (queries, hidden, 1.0),
        "self_attn.k_proj": (keys, hidden, 1.0),
        "self_attn.v_proj": (keys, hidden, 1.0),
        "self_attn.o_proj": (hidden, queries, 0.3),
        "mlp.gate_proj": (mlp, hidden, 1.0),
        "mlp.up_proj": (mlp, hidden, 1.0),
        "mlp.down_proj": (hidden, mlp, 0.3),
    }
    prefix = f"model.layers.{block}."
    made = {
        f"{prefix}{layer}.weight": random.normal(rows, columns, gain / columns**0.5)
        for layer, (rows, columns, gain) in shapes.items()
    }
    for norm in ("input_layernorm", "post_attention_layernorm"):
        made[f"{prefix}{norm}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    return made


def make_text(path: Path, vocabulary: int, rows: int = 80, length: int = 2048) -> None:
    """Write random tokens, each repeated four times in a row; every row is a document."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, vocabulary, (rows, length // 4), generator=generator).repeat_interleave(
        4, dim=1
    )
    save_file({"tokens": tokens.to(torch.int32).contiguous()}, path)
