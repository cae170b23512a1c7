"""Packing of documents into sequences of one length, such that every prefix is as diverse as the documents allow.

A group is one long document, or several short ones joined until they fill a sequence. It begins at a sequence boundary,
and what remains after its last full sequence is dropped. So no sequence crosses from one group to the next, and
statistics may take the groups as independent.

Shapes: N sequences, L tokens of a sequence, W windows of a group, T tokens of a document, R rows of a document.
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
        tokens: token ids, int32 (N, L).
        documents: number of the group that each sequence comes from, int32 (N,).
    """

    name: str
    tokens: IntArray
    documents: IntArray

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        """The number of tokens in a sequence."""
        return int(self.tokens.shape[1])

    @property
    def groups(self) -> int:
        """The number of distinct groups."""
        return len(np.unique(self.documents))

    @cached_property
    def fingerprint(self) -> str:
        """The digest of shape, tokens and groups, as 32 hexadecimal digits; the name is not part of it."""
        found = hashlib.sha256(str(self.tokens.shape).encode())
        found.update(np.ascontiguousarray(self.tokens, "<i4").tobytes())
        found.update(np.ascontiguousarray(self.documents, "<i4").tobytes())
        return found.hexdigest()[:32]


def split_groups(documents: Iterable[IntArray], length: int) -> Iterator[IntArray]:
    """Cut documents, in order, into groups of windows.

    Args:
        documents: token ids (T,) of a document to be packed, or (R, L) with L >= length of rows that are packed
            already, each of which is cut into `L // length` windows.
        length: number of tokens in a window.

    Yields:
        Groups as arrays (W, length), W >= 1. Documents of at least `length` tokens are yielded at once; shorter ones
        wait until, joined, they fill one window.
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
    """Pack documents into at most `count` sequences.

    The first windows of all groups come first, then the second windows of all groups, and so on. Documents are taken
    only until there are `count` groups, because no later group could be reached. For the same documents, a smaller
    `count` gives a prefix of what a larger one gives.

    Args:
        name: name of the set of sequences.
        documents: token ids of each document, as `split_groups` takes them.
        length: number of tokens in a sequence.
        count: largest number of sequences.

    Returns:
        The sequences, fewer than `count` if the documents end before.
    """
    groups = list(islice(split_groups(documents, length), count))
    rounds = max((len(group) for group in groups), default=0)
    order = ((g, w) for w in range(rounds) for g, group in enumerate(groups) if w < len(group))
    places = list(islice(order, count))
    tokens_NL = np.array([groups[g][w] for g, w in places], np.int32).reshape(-1, length)
    return Sequences(name, tokens_NL, np.array([g for g, _ in places], np.int32))
