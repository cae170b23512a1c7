"""Lines of the journal: encoding, decoding, checksum and the parts at fixed places (layout in `journal.py`)."""

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
    """One evaluation, decoded from its line.

    Attributes:
        number: number of the trial within its run.
        key: digest of the model that was evaluated and of the data set.
        fidelity: sequences that the model was evaluated on.
        values: fitness of each sequence as a mean over its tokens; empty after an error.
        cross_entropy: mean next-token cross-entropy of each sequence in nats; empty after an error.
        seconds: time that the evaluation took.
        error: reason why there are no values, or None.
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
        """Number of tokens that went through the model."""
        return self.fidelity.tokens


def _line(value: Any) -> bytes:
    payload = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    return b"%08x %s\n" % (crc32(payload), payload)


def header() -> bytes:
    """Return the first line of a new journal file."""
    return _line({"format_version": FORMAT_VERSION, "kind": "journal"})


def valid(line: bytes) -> bool:
    """Return whether the checksum of a complete line is right."""
    return line[8:9] == b" " and line[:8] == b"%08x" % crc32(line[9:-1])


def is_header(line: bytes) -> bool:
    """Return whether a valid line is a header and not an evaluation."""
    return line[9:10] == b"{"


def version(line: bytes) -> int:
    """Return the format version that a header line names."""
    return int(json.loads(line[9:])["format_version"])


def key_of(line: bytes) -> tuple[bytes, bytes]:
    """Return fingerprint and key of a valid line with an evaluation, without decoding its JSON."""
    return line[_FINGERPRINT], line[_KEY]


def place(fidelity: Fidelity) -> bytes:
    """Return the bytes that follow the key in every line whose sequences are in the same order as those of `fidelity`.

    They hold the data set, the seed and the length.
    """
    return (
        json.dumps([fidelity.data, fidelity.seed, fidelity.length], separators=(",", ":")).encode()[1:-1]
        + b","
    )


def at_place(line: bytes, wanted: bytes) -> bool:
    """Return whether a valid line with an evaluation has the bytes `wanted`, which `place` returned, after its key."""
    return line.startswith(wanted, _PLACE)


def encode(fingerprint: str, key: str, evaluation: Evaluation) -> bytes:
    """Return the line of an evaluation.

    Floats are written so that they read back exactly, except that all NaNs become the same NaN.
    """
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
    # JSON has neither NaN nor infinity, so they are written as strings, which float() reads back.
    return [float(value) if math.isfinite(value) else str(float(value)) for value in values]


def decode(line: bytes) -> Record:
    """Decode the evaluation in a valid line."""
    _, key, data, seed, length, start, stop, values, entropies, seconds, number, error = json.loads(line[9:])
    fidelity = Fidelity(seed, start, stop, length, data)
    return Record(
        number, key, fidelity, tuple(map(float, values)), tuple(map(float, entropies)), seconds, error
    )
