"""The model's own tokenizer, which turns text into token ids without special tokens, and its BOS token."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """The part of a tokenizer that is needed to turn documents into sequences.

    Attributes:
        encode: function from a text to its token ids, without special tokens.
        bos: id of the token that begins a document, or None if there is none.
        size: number of token ids; all ids are smaller.
    """

    encode: Callable[[str], list[int]]
    bos: int | None
    size: int


def load_tokenizer(model: str | Path, *, trust_remote_code: bool = False) -> Tokenizer:
    """Load the tokenizer of a model.

    BOS is the tokenizer's, or else that of the model's configuration. Whether the tokenizer would add BOS by itself
    does not matter.

    Args:
        model: folder of the model, or its name on the Hugging Face hub.
        trust_remote_code: whether to run Python code that comes with the model.

    Raises:
        ValueError: no tokenizer can be loaded from the model.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model), trust_remote_code=trust_remote_code)
        config = AutoConfig.from_pretrained(str(model), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"no tokenizer loads from {model} ({reason}); give the folder of a model") from error

    def encode(text: str) -> list[int]:
        # verbose=False: no warning of documents beyond the model's context, which are cut into windows later.
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    bos = tokenizer.bos_token_id
    if bos is None:
        bos = getattr(config, "bos_token_id", None)
    return Tokenizer(encode, bos if isinstance(bos, int) else None, len(tokenizer))
