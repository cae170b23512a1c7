"""Byte-level BPE tokenizers as llama.cpp has them. It knows how text is split before merging by names alone."""

import json
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {_GPT2: "gpt-2", _LLAMA3: "llama-bpe", _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"): "qwen2"}
"""Pattern to llama.cpp's name of it."""


def add_tokenizer(writer: GGUFWriter, folder: Path, vocabulary: int) -> str | None:
    """Write the tokenizer of a model's folder, or none.

    Args:
        writer: of the file.
        folder: of the source.
        vocabulary: tokens that the model has; ones that the tokenizer lacks are left unused.

    Returns:
        Why there is none; then llama.cpp takes token ids alone. None if there is one.
    """
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    split, lack = _split(content)
    if not lack and _last_id(content) >= vocabulary:
        lack = "the tokenizer has more tokens than the model"
    if lack:
        writer.add_tokenizer_model("no_vocab")
        return lack
    tokens, types = _tokens(content, vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    special = SpecialVocab(folder, load_merges=True, n_vocab=vocabulary)
    special.add_special_token.setdefault("bos", False)
    special.add_to_gguf(writer, quiet=True)
    return None


def _split(content: dict[str, Any]) -> tuple[str, str]:
    """llama.cpp's name of how text is split, or why there is none."""
    model = content.get("model", {})
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        return "", "the tokenizer is no byte-level BPE"
    parts = content.get("pre_tokenizer") or {}
    parts = parts.get("pretokenizers", [parts])
    patterns = [pattern for part in parts for pattern in _patterns(part)]
    normal = (content.get("normalizer") or {}).get("type", "NFC") == "NFC"
    if not normal or len(patterns) != 1 or patterns[0] not in _SPLITS:
        return "", "llama.cpp has no name for how the tokenizer splits text"
    return _SPLITS[patterns[0]], ""


def _patterns(part: dict[str, Any]) -> list[str]:
    """What a step of splitting splits by; an empty pattern for what has no name."""
    if part.get("type") == "ByteLevel" and not part.get("add_prefix_space"):
        return [_GPT2] if part.get("use_regex", True) else []
    isolated = part.get("behavior") == "Isolated" and not part.get("invert")
    return [part["pattern"].get("Regex", "") if part.get("type") == "Split" and isolated else ""]


def _last_id(content: dict[str, Any]) -> int:
    added = (token["id"] for token in content.get("added_tokens", ()))
    return max((*content["model"]["vocab"].values(), *added), default=-1)


def _tokens(content: dict[str, Any], vocabulary: int) -> tuple[list[str], list[int]]:
    tokens = [f"[PAD{number}]" for number in range(vocabulary)]
    types = [int(TokenType.UNUSED)] * vocabulary
    for text, number in content["model"]["vocab"].items():
        tokens[number], types[number] = text, int(TokenType.NORMAL)
    for added in content.get("added_tokens", ()):
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], int(kind)
    return tokens, types
