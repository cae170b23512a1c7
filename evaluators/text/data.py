"""Calibration, validation and held-out sequences, which share no document and are the same for the same seed."""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from .packing import Sequences, pack
from .sources import Document, IntArray, SourceConfig, documents
from .tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "DataConfig",
    "Sequences",
    "SetConfig",
    "SourceConfig",
    "Tokenizer",
    "load_sequences",
    "load_tokenizer",
]

_log = logging.getLogger(__name__)

_SHARES = {"heldout": 1, "validation": 1, "calibration": 3}
"""Shares of the documents of a common source. A document that several sources hold stays in the first of these sets."""


class SetConfig(BaseModel):
    """One set of sequences.

    Attributes:
        tokens: number of tokens of the set, rounded down to whole sequences.
        source: source of the documents; null takes a share of the common source.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int = Field(ge=1)
    source: SourceConfig | None = None


class DataConfig(BaseModel):
    """The text of a run, as calibration, validation and held-out sequences.

    Sets with the same source divide its documents 3 : 1 : 1 (calibration, validation, held-out). The documents are put
    in order by a seeded digest of their contents, which does not depend on how many tokens are wanted.

    Attributes:
        source: source of every set that has no source of its own.
        length: number of tokens in a sequence.
        bos: whether a BOS token stands before each document: `auto` (if the model has one), `always` or `never`.
        calibration: set that levels are built from and that the search uses.
        validation: set that the final choice uses.
        heldout: set that only the report uses.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: SourceConfig = SourceConfig()
    length: int = Field(1024, ge=2)
    bos: Literal["auto", "always", "never"] = "auto"
    calibration: SetConfig = SetConfig(tokens=131_072)
    validation: SetConfig = SetConfig(tokens=65_536)
    heldout: SetConfig = SetConfig(tokens=65_536)

    @property
    def sets(self) -> dict[str, SetConfig]:
        """The sets by name; held-out is first, because it keeps a document that several sources hold."""
        return {name: getattr(self, name) for name in _SHARES}

    @model_validator(mode="after")
    def _whole_sequences(self) -> "DataConfig":
        for name, wanted in self.sets.items():
            if wanted.tokens < self.length:
                raise ValueError(
                    f"{name}.tokens {wanted.tokens} is less than one sequence of {self.length}; "
                    "raise it or lower data.length"
                )
        return self


def load_sequences(config: DataConfig, tokenizer: Tokenizer, seed: int) -> dict[str, Sequences]:
    """Read the documents, divide them into the three sets, and tokenise and pack each set.

    A document that occurs twice is used once. A document that two sources hold stays only in held-out, or else in
    validation. Time: sources are read up to their `max_documents`. Tokenising a set stops once each of its sequences
    can come from a document of its own, or when its documents end.

    Args:
        config: sources, sizes and sequence length of the sets.
        tokenizer: tokenizer of the model.
        seed: seed of the order of the documents.

    Returns:
        The sequences of `calibration`, `validation` and `heldout`. Asking for fewer tokens gives prefixes of these.

    Raises:
        ValueError: there is too little text or too few documents to divide, a token is outside the vocabulary, or `bos`
            is `always` for a model without a BOS token.
    """
    if config.bos == "always" and tokenizer.bos is None:
        raise ValueError(
            "data.bos is 'always', but neither tokenizer nor model has a BOS token; use auto or never"
        )
    bos = [] if config.bos == "never" or tokenizer.bos is None else [tokenizer.bos]
    found = {}
    for name, keyed in _divide(config, seed).items():
        asked = config.sets[name].tokens // config.length
        tokens = _tokenise(keyed.values(), tokenizer, bos, config.length)
        found[name] = pack(name, tokens, config.length, asked)
        if len(found[name]) < asked:
            source = (config.sets[name].source or config.source).source
            raise ValueError(
                f"{name} needs {asked} sequences of {config.length} tokens, but its {len(keyed)} documents of "
                f"{source!r} give {len(found[name])}; lower data.{name}.tokens or data.length, or give more text"
            )
    return {name: found[name] for name in ("calibration", "validation", "heldout")}


Keyed = dict[bytes, Document]
"""Documents by the seeded digest of their content, in order of the digests."""


def _divide(config: DataConfig, seed: int) -> dict[str, Keyed]:
    sharing: dict[SourceConfig, list[str]] = {}
    for name, wanted in config.sets.items():
        sharing.setdefault(wanted.source or config.source, []).append(name)
    keyed_sets: dict[str, Keyed] = {}
    for source, names in sharing.items():
        keyed_sets |= _shares(_read(source, seed), names, source.source)
    taken: set[bytes] = set()
    for name in config.sets:
        common = keyed_sets[name].keys() & taken
        if common:
            _log.warning("%d documents left out of %s: held-out or validation has them", len(common), name)
        keyed_sets[name] = {key: d for key, d in keyed_sets[name].items() if key not in common}
        taken |= keyed_sets[name].keys()
    return keyed_sets


def _read(source: SourceConfig, seed: int) -> Keyed:
    keyed: Keyed = {}
    repeated = 0
    for document in islice(documents(source), source.max_documents):
        content = document.encode() if isinstance(document, str) else document.tobytes()
        key = hashlib.blake2b(content, digest_size=16, key=str(seed).encode()).digest()
        repeated += key in keyed
        keyed.setdefault(key, document)
    if repeated:
        _log.info("%s: %d repeated documents are used once", source.source, repeated)
    return dict(sorted(keyed.items(), key=lambda item: item[0]))


def _shares(keyed: Keyed, names: list[str], source: str) -> dict[str, Keyed]:
    if len(keyed) < len(names):
        raise ValueError(
            f"data source {source!r} has {len(keyed)} documents to divide among {', '.join(names)}; "
            "divide its text with `split`, or give each set a source of its own"
        )
    keys = iter(keyed)
    total = sum(_SHARES[name] for name in names)
    found = {}
    for name in names[:-1]:
        share = max(1, round(len(keyed) * _SHARES[name] / total))
        found[name] = {key: keyed[key] for key in islice(keys, share)}
    found[names[-1]] = {key: keyed[key] for key in keys}
    return found


def _tokenise(
    keyed: Iterable[Document], tokenizer: Tokenizer, bos: list[int], length: int
) -> Iterator[IntArray]:
    for document in keyed:
        if isinstance(document, str):
            yield np.array(bos + tokenizer.encode(document), np.int32)
            continue
        if document.shape[1] < length:
            raise ValueError(
                f"pre-tokenised rows have {document.shape[1]} tokens, but data.length is {length}; lower data.length"
            )
        if document.max() >= tokenizer.size:
            raise ValueError(
                f"pre-tokenised text holds token {document.max()}, but the vocabulary has {tokenizer.size}; "
                "make it with the model's tokenizer"
            )
        yield document
