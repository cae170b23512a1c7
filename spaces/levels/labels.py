"""Labels: the names of levels, their grammar, and the number of bits that each level stores.

| label | level |
| --- | --- |
| `dense`, `keep` | nothing changed (a linear layer; a branch or block) |
| `drop` | the branch or block is removed |
| `w4g128`, `w4` | 4-bit symmetric integers in groups of 128 inputs, or one group per output channel |
| `w4g128a` | the same with a stored zero point (asymmetric, what EvoPress uses) |
| `s60`, `s60-1000000` | 60 % of the weights are zero; 1,000,000 zeros fewer than that (EvoPress's ladder) |
| `2:4`, `4:8` | N:M, with N nonzero weights in each M consecutive inputs |
| `2:4+w4g128` | a pattern and a grid: the surviving weights are quantised |
| `q4_k`, `iq3_s` ... | an encoding, such as a storage type of llama.cpp (`encoding_registry.py` has all of them) |
"""

import math
import re
from dataclasses import dataclass

from .encoding import Encoding
from .encoding_registry import ENCODINGS

_GRID = re.compile(r"w(?P<bits>[2-8])(?:g(?P<group>[1-9]\d*))?(?P<asymmetric>a?)")
_SPARSE = re.compile(r"s(?P<percent>\d{1,2}(?:\.\d+)?)(?P<offset>[+-]\d+)?")
_PATTERN = re.compile(r"(?P<keep>[1-9]\d*):(?P<of>[1-9]\d*)")
_MIX = re.compile(r"(?P<type>q\d_k)_(?:s|m|l)")
_ENCODED = {type(encoding): label for label, encoding in reversed(ENCODINGS.items())}
_EXAMPLES = ("dense", "w4g128", "w4g128a", "w8", "s60", "2:4", "2:4+w4g128", *reversed(_ENCODED.values()))
_GRAMMAR = f"levels look like {', '.join(_EXAMPLES)}"


@dataclass(frozen=True, slots=True)
class Grid:
    """Quantisation to integer codes, with one 16-bit scale per group of inputs of an output.

    Attributes:
        bits: number of bits of a code.
        group: number of inputs in a group; None makes one group of all inputs of an output.
        symmetric: whether the grid has no zero point; an asymmetric grid stores a 16-bit zero point per group.
    """

    bits: int
    group: int | None
    symmetric: bool

    def groups(self, in_features: int) -> int:
        """Return the number of groups in a row of `in_features` weights; the last group may be shorter."""
        return -(-in_features // self.group) if self.group else 1


@dataclass(frozen=True, slots=True)
class Unstructured:
    """Sparsity with zeros anywhere in the weight; their number is `ceil(fraction * numel) + offset`.

    The number is rounded up, so that a model whose layers are all at `s60` is never less than 60 % sparse.

    Attributes:
        fraction: fraction of the weights that are zero, in [0, 1).
        offset: number of zeros beyond that fraction; it may be negative.
    """

    fraction: float
    offset: int = 0

    def zeros(self, numel: int) -> int:
        """Return the number of zeros among `numel` weights, within [0, numel]."""
        return min(max(math.ceil(self.fraction * numel - 1e-6) + self.offset, 0), numel)


@dataclass(frozen=True, slots=True)
class Pattern:
    """Sparsity with a fixed number of nonzero weights in each group of consecutive inputs.

    Attributes:
        keep: number of nonzero weights in a group.
        of: number of consecutive inputs in a group.
    """

    keep: int
    of: int

    def zeros(self, numel: int) -> int:
        """Return the number of zeros among `numel` weights, whose rows are whole multiples of `of`."""
        return numel // self.of * (self.of - self.keep)


Sparsity = Unstructured | Pattern


@dataclass(frozen=True, slots=True)
class Scheme:
    """The meaning of a label for a linear layer; all attributes of `dense` are None.

    Attributes:
        sparsity: sparsity of the weights, or None.
        grid: grid of the surviving weights, or None.
        encoding: another way to store the weight, or None; it excludes sparsity and grid.
    """

    sparsity: Sparsity | None = None
    grid: Grid | None = None
    encoding: Encoding | None = None

    @property
    def rounds(self) -> bool:
        """Whether the surviving weights are rounded."""
        return self.grid is not None or self.encoding is not None

    @property
    def multiple(self) -> int:
        """The number by which the number of inputs of a layer must be divisible."""
        if isinstance(self.sparsity, Pattern):
            return self.sparsity.of
        return self.encoding.multiple if self.encoding else 1


def parse_label(label: str) -> Scheme:
    """Return the scheme that a label names.

    Raises:
        ValueError: the label does not follow the grammar in this module's table, or is `keep` or `drop`, which
            belong to branches and have no scheme.
    """
    if label == "dense":
        return Scheme()
    if label in ENCODINGS:
        return Scheme(encoding=ENCODINGS[label])
    _refuse_written_otherwise(label)
    head, w, tail = label.partition("w")
    if head and w and not head.endswith("+"):
        raise ValueError(f"level {label!r} is unknown; {_GRAMMAR}")
    sparse_text, grid_text = (head[:-1] if w else head), w + tail
    grid = _parse_grid(grid_text, label) if grid_text else None
    sparsity = _parse_sparsity(sparse_text, label) if head or not w else None
    return Scheme(sparsity, grid)


def _refuse_written_otherwise(label: str) -> None:
    """Refuse names that users of llama.cpp write: types in capitals, and mixes such as `Q4_K_M`."""
    name = label.lower()
    if name in ENCODINGS:
        raise ValueError(f"level {label!r} is unknown; did you mean {name!r}?")
    if (match := _MIX.fullmatch(name)) and match["type"] in ENCODINGS:
        raise ValueError(
            f"level {label!r} is a mix of llama.cpp's types, mostly {match['type']}; "
            f"give the types as levels, such as {match['type']} and q6_k, and the search mixes them"
        )


def _parse_grid(text: str, label: str) -> Grid:
    match = _GRID.fullmatch(text)
    if not match:
        raise ValueError(f"level {label!r} is unknown; {_GRAMMAR}")
    group = match["group"]
    return Grid(int(match["bits"]), int(group) if group else None, not match["asymmetric"])


def _parse_sparsity(text: str, label: str) -> Sparsity:
    if match := _SPARSE.fullmatch(text):
        return Unstructured(float(match["percent"]) / 100, int(match["offset"] or 0))
    if match := _PATTERN.fullmatch(text):
        keep, of = int(match["keep"]), int(match["of"])
        if keep < of:
            return Pattern(keep, of)
    raise ValueError(f"level {label!r} is unknown; {_GRAMMAR}")


def kept(scheme: Scheme, numel: int) -> int:
    """Return the number of weights, of `numel`, that may be nonzero."""
    return numel - (scheme.sparsity.zeros(numel) if scheme.sparsity else 0)


def stored_bits(scheme: Scheme, shape: tuple[int, int], dense_bits: int = 16) -> int:
    """Return the exact number of bits that a weight takes: codes or values, scales, zero points and mask.

    A sparse level stores one mask bit per weight. Its surviving weights take 16 bits each, or the bits of the grid's
    codes. Each group has a 16-bit scale and, if the grid is asymmetric, a 16-bit zero point. 6,979,321,856 weights at
    `w3g128a` take 3.25 bits each.

    Args:
        scheme: meaning of the level's label.
        shape: numbers of outputs and inputs of the layer, (O, I).
        dense_bits: number of bits of a weight in the dense model.
    """
    out_features, in_features = shape
    numel = out_features * in_features
    if scheme == Scheme():
        return dense_bits * numel
    if scheme.encoding is not None:
        return scheme.encoding.stored_bits(shape)
    mask = numel if scheme.sparsity else 0
    if scheme.grid is None:
        return mask + 16 * kept(scheme, numel)
    per_group = 16 if scheme.grid.symmetric else 32
    scales = per_group * out_features * scheme.grid.groups(in_features)
    return mask + scheme.grid.bits * kept(scheme, numel) + scales
