"""Text to token ids: the model's own tokenizer without special tokens, and its BOS."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """What packing needs of a tokenizer.

    Attributes:
        encode: text to token ids, no special tokens added.
        bos: id that begins a document, or None.
        size: number of ids; all ids are below it.
    """

    encode: Callable[[str], list[int]]
    bos: int | None
    size: int


def load_tokenizer(model: str | Path, *, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer of a model directory (or hub name).

    BOS is the tokenizer's, else the model configuration's; whether the tokenizer would add it by itself does
    not matter.

    Raises:
        ValueError: there is no tokenizer that loads.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model), trust_remote_code=trust_remote_code)
        config = AutoConfig.from_pretrained(str(model), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"no tokenizer loads from {model} ({reason}); give the folder of a model") from error

    def encode(text: str) -> list[int]:
        # verbose=False: documents longer than the model's context are cut into windows later.
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    bos = tokenizer.bos_token_id
    if bos is None:
        bos = getattr(config, "bos_token_id", None)
    return Tokenizer(encode, bos if isinstance(bos, int) else None, len(tokenizer))
