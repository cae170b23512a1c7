"""Lines of the journal: encoding, checksum and the parts at fixed places (`journal.py` draws the layout)."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from ...spaces.storage.files import FORMAT_VERSION
from ..trial import Evaluation, Fidelity

_FINGERPRINT = slice(11, 43)
_KEY = slice(46, 78)
_PLACE = 80


@dataclass(frozen=True, slots=True)
class Record:
    """One line, decoded.

    Attributes:
        number: the trial's number within its run.
        key: digest of the model that was measured.
        fidelity: the sequences it was measured on.
        values: fitness of each sequence; empty after an error.
        cross_entropy: mean next-token cross-entropy of each sequence in nats.
        seconds: time it took.
        error: why there are no values, or None.
    """

    number: int
    key: str
    fidelity: Fidelity
    values: tuple[float, ...]
    cross_entropy: tuple[float, ...]
    seconds: float
    error: str | None

    @property
    def tokens(self) -> int:
        """Tokens that went through the model."""
        return self.fidelity.tokens


def _line(value: Any) -> bytes:
    payload = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    return b"%08x %s\n" % (crc32(payload), payload)


def header() -> bytes:
    """The first line of a new file."""
    return _line({"format_version": FORMAT_VERSION, "kind": "journal"})


def valid(line: bytes) -> bool:
    """Whether a complete line is as it was written."""
    return line[8:9] == b" " and line[:8] == b"%08x" % crc32(line[9:-1])


def is_header(line: bytes) -> bool:
    """Whether a valid line is a header and not an evaluation."""
    return line[9:10] == b"{"


def version(line: bytes) -> int:
    """The format version that a header names."""
    return int(json.loads(line[9:])["format_version"])


def key_of(line: bytes) -> tuple[bytes, bytes]:
    """Fingerprint and key of a valid evaluation, without decoding it."""
    return line[_FINGERPRINT], line[_KEY]


def place(fidelity: Fidelity) -> bytes:
    """How the part after the key begins in lines over the same order of sequences."""
    return (
        json.dumps([fidelity.data, fidelity.seed, fidelity.length], separators=(",", ":")).encode()[1:-1]
        + b","
    )


def at_place(line: bytes, wanted: bytes) -> bool:
    """Whether a valid evaluation is over the order of sequences that `place` gave."""
    return line.startswith(wanted, _PLACE)


def encode(fingerprint: str, key: str, evaluation: Evaluation) -> bytes:
    """The line of an evaluation. Floats are written to read back exactly; all NaNs are one."""
    asked = evaluation.trial.fidelity
    failed = evaluation.error is not None
    return _line(
        [
            fingerprint,
            key,
            asked.data,
            asked.seed,
            asked.length,
            asked.start,
            asked.stop,
            [] if failed else _texts(evaluation.values),
            [] if failed else _texts(evaluation.cross_entropy),
            float(evaluation.seconds),
            evaluation.trial.number,
            evaluation.error,
        ]
    )


def _texts(values: Iterable[float]) -> list[float | str]:
    # JSON has no NaN and no infinity; their names as strings are read back by float().
    return [float(value) if math.isfinite(value) else str(float(value)) for value in values]


def decode(line: bytes) -> Record:
    """The evaluation in a valid line."""
    _, key, data, seed, length, start, stop, values, entropies, seconds, number, error = json.loads(line[9:])
    fidelity = Fidelity(seed, start, stop, length, data)
    return Record(
        number, key, fidelity, tuple(map(float, values)), tuple(map(float, entropies)), seconds, error
    )
