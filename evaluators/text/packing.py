"""Documents to sequences of one length, such that every prefix is as diverse as the documents allow.

A group is one long document, or short ones joined until they fill a sequence. It begins at a sequence
boundary and what remains after its last full sequence is dropped, so no sequence crosses from one group to
the next: groups are the independent units of statistics. Shapes: N sequences, L tokens, W windows of a group.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from .sources import IntArray


@dataclass(frozen=True, eq=False)
class Sequences:
    """Sequences of tokens in a fixed order.

    Attributes:
        name: `calibration`, `validation` or `heldout`.
        tokens: int32 (N, L).
        documents: int32 (N,), the group each sequence comes from.
    """

    name: str
    tokens: IntArray
    documents: IntArray

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        """Tokens per sequence."""
        return int(self.tokens.shape[1])

    @property
    def groups(self) -> int:
        """Number of distinct groups."""
        return len(np.unique(self.documents))

    @cached_property
    def fingerprint(self) -> str:
        """Digest of shape, tokens and groups; the name does not count."""
        found = hashlib.sha256(str(self.tokens.shape).encode())
        found.update(np.ascontiguousarray(self.tokens, "<i4").tobytes())
        found.update(np.ascontiguousarray(self.documents, "<i4").tobytes())
        return found.hexdigest()[:32]


def split_groups(documents: Iterable[IntArray], length: int) -> Iterator[IntArray]:
    """Cut documents, in order, into groups of windows.

    Args:
        documents: token ids (T,) for a document to be packed; (R, L >= length) for rows that are packed
            already, each of which is cut into `L // length` windows.
        length: tokens per window.

    Yields:
        (W, length) arrays, W >= 1. Documents of at least `length` tokens come at once; shorter ones wait
        until, joined, they fill one window.
    """
    waiting: list[IntArray] = []
    for document in documents:
        if document.ndim == 2:
            whole = document.shape[1] // length
            yield document[:, : whole * length].reshape(-1, length)
        elif len(document) >= length:
            yield _windows(document, length)
        else:
            waiting.append(document)
            if sum(map(len, waiting)) >= length:
                yield _windows(np.concatenate(waiting), length)
                waiting = []


def _windows(tokens_T: IntArray, length: int) -> IntArray:
    whole = len(tokens_T) // length
    return tokens_T[: whole * length].reshape(whole, length)


def pack(name: str, documents: Iterable[IntArray], length: int, count: int) -> Sequences:
    """At most `count` sequences: the first window of every group, then every second window, and so on.

    Takes documents only until it has `count` groups, because no later one could be reached. For the same
    documents a smaller `count` gives a prefix of a larger one. Fewer than `count` come back when the
    documents end before.
    """
    groups = list(islice(split_groups(documents, length), count))
    rounds = max((len(group) for group in groups), default=0)
    order = ((g, w) for w in range(rounds) for g, group in enumerate(groups) if w < len(group))
    places = list(islice(order, count))
    tokens_NL = np.array([groups[g][w] for g, w in places], np.int32).reshape(-1, length)
    return Sequences(name, tokens_NL, np.array([g for g, _ in places], np.int32))
