"""Byte-level BPE tokenizers in GGUF files.

llama.cpp knows a fixed set of rules that split text before tokens are merged. A GGUF file names one of these rules.
"""

import json
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {_GPT2: "gpt-2", _LLAMA3: "llama-bpe", _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"): "qwen2"}
"""llama.cpp's name of a rule that splits text, by the regular expression in `tokenizer.json`."""


def add_tokenizer(writer: GGUFWriter, folder: Path, vocabulary: int) -> str | None:
    """Add the tokenizer in a model's folder to a GGUF file, if llama.cpp can represent it.

    Args:
        writer: writer of the GGUF file.
        folder: folder of the source model.
        vocabulary: number of tokens of the model; tokens that the tokenizer lacks are marked as unused.

    Returns:
        The reason why the file has no tokenizer, so that llama.cpp takes only token ids; None if it has one.
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
    """Return llama.cpp's name of the rule that splits text and "", or "" and the reason why there is no name."""
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
    """Return the regular expressions that one pre-tokenizer splits by, with "" for a step that llama.cpp lacks."""
    if part.get("type") == "ByteLevel" and not part.get("add_prefix_space"):
        return [_GPT2] if part.get("use_regex", True) else []
    isolated = part.get("behavior") == "Isolated" and not part.get("invert")
    return [part["pattern"].get("Regex", "") if part.get("type") == "Split" and isolated else ""]


def _last_id(content: dict[str, Any]) -> int:
    """Return the largest token id of a tokenizer, or -1 if it has no tokens."""
    added = (token["id"] for token in content.get("added_tokens", ()))
    return max((*content["model"]["vocab"].values(), *added), default=-1)


def _tokens(content: dict[str, Any], vocabulary: int) -> tuple[list[str], list[int]]:
    """Return the text and llama.cpp's type of every token id of the model."""
    tokens = [f"[PAD{number}]" for number in range(vocabulary)]
    types = [int(TokenType.UNUSED)] * vocabulary
    for text, number in content["model"]["vocab"].items():
        tokens[number], types[number] = text, int(TokenType.NORMAL)
    for added in content.get("added_tokens", ()):
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], int(kind)
    return tokens, types
