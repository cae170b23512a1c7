"""The journal: an append-only file with one line per evaluation, which serves as cache, log and history.

A line is a checksum followed by compact JSON:

    crc32 ["FINGERPRINT","KEY","DATA",seed,length,start,stop,[values],[cross-entropies],seconds,number,error]

Fingerprint and key have 32 hex digits each, so both stand at fixed places of the line. Opening a journal therefore
decodes no JSON: it checks the checksum of each line and remembers where the lines of each key begin. The first line is
a header with `format_version`. A line without an end, which a killed process left or another process is still writing,
does not count, and the next `append` of the run that owns the file cuts it off.
"""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ...spaces.space import Profile, Space
from ...spaces.storage.files import FORMAT_VERSION, digest, sync_folder
from ..trial import Evaluation, Fidelity, Trial
from .journal_lines import Record, at_place, decode, encode, header, is_header, key_of, place, valid, version

_BINARY = getattr(os, "O_BINARY", 0)  # without this flag Windows writes two characters for the end of a line
_log = logging.getLogger(__name__)
_HEX = re.compile("[0-9a-f]{32}")
_RECENT = 256
"""Number of appended lines that are kept in memory, which is more than a generation of offspring."""

Known = list[tuple[float, float] | None]
"""Value and cross-entropy at each position of a fidelity, or None where the position was not evaluated."""


def key_of_values(space: Space, profile: Profile, sequences: str) -> str:
    """Return the journal's key of the model that a profile builds, evaluated on one data set.

    Args:
        space: space of the profile.
        profile: profile of the model; profiles that build the same model share a key.
        sequences: fingerprint of the data set.
    """
    return digest([space.key(profile), sequences])


class _Scan:
    """An index of one journal file, which maps each key to the first bytes of its lines; it never writes the file.

    It covers the lines that were complete when the file was last read.

    Args:
        path: path of the journal file, which may not exist.
        fingerprint: fingerprint of the lines to index; lines with another fingerprint are only counted.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.fingerprint = fingerprint.encode()
        self.end = 0
        self.lines = 0
        self.records = 0
        self.foreign = 0
        self.damaged: list[int] = []
        # Most keys have a single line, and an int takes less memory than a list.
        self._offsets: dict[bytes, int | list[int]] = {}
        self._recent: dict[int, bytes] = {}
        self.refresh()

    def refresh(self) -> None:
        """Index the lines that were completed since the last call."""
        before = len(self.damaged)
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self.end)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self.take(line)
        if new := self.damaged[before:]:
            shown = ", ".join(map(str, new[:5])) + (", ..." if len(new) > 5 else "")
            _log.warning("%s: %d damaged lines skipped (line %s)", self.path, len(new), shown)

    def take(self, line: bytes) -> None:
        """Index one complete line, which begins at byte `end` of the file."""
        start = self.end
        self.end += len(line)
        self.lines += 1
        if not valid(line):
            self.damaged.append(self.lines)
        elif is_header(line):
            if (found := version(line)) > FORMAT_VERSION:
                raise ValueError(
                    f"{self.path} has format_version {found}, this release reads up to {FORMAT_VERSION}; "
                    "upgrade paretopress"
                )
        else:
            fingerprint, key = key_of(line)
            if fingerprint == self.fingerprint:
                self._remember(key, start)
            else:
                self.foreign += 1

    def keep(self, line: bytes) -> None:
        """Index a line that was just appended and keep it in memory, because its model is often asked for again."""
        self._recent[self.end] = line
        if len(self._recent) > _RECENT:
            del self._recent[next(iter(self._recent))]
        self.take(line)

    def _remember(self, key: bytes, offset: int) -> None:
        self.records += 1
        here = self._offsets.get(key)
        if here is None:
            self._offsets[key] = offset
        elif isinstance(here, int):
            self._offsets[key] = [here, offset]
        else:
            here.append(offset)

    def find(self, key: str, fidelity: Fidelity) -> Iterator[Record]:
        """Yield the records of a key whose sequences are in the same order as those of `fidelity`, the oldest first."""
        found = self._offsets.get(key.encode())
        if found is None:
            return
        wanted = place(fidelity)
        for line in self._lines([found] if isinstance(found, int) else found):
            # Another run may have replaced its journal by a new one since it was indexed.
            same = valid(line) and key_of(line) == (self.fingerprint, key.encode())
            if same and at_place(line, wanted):
                yield decode(line)

    def _lines(self, offsets: list[int]) -> list[bytes]:
        """Return the lines that begin at the given bytes; no lines if the file is gone."""
        lines = [self._recent[offset] for offset in offsets if offset in self._recent]
        if len(lines) == len(offsets):
            return lines
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            return [_line_at(file, offset) for offset in offsets]
        return []


def _line_at(file: BinaryIO, offset: int) -> bytes:
    file.seek(offset)
    return file.readline()


class Journal:
    """All evaluations of one run, and those of other runs with the same fingerprint.

    The journal knows values by key and position. Fidelities with the same data set, seed and length share the values of
    the positions that they have in common. Where several lines hold a position, the first line counts, and the run's
    own lines count before those of other runs.

    Opening reads each line once (about 2 microseconds) and keeps about 150 bytes per key. Nothing is written before the
    first `append`, so a journal can be opened for reading while another process writes it.

    Args:
        path: file of this run, which may not exist yet.
        fingerprint: 32 hex digits that stand for everything that a value depends on besides key and fidelity; lines
            with another fingerprint are skipped.
        readers: files of other runs, which are only read; a file that is missing counts as empty.

    Raises:
        ValueError: the fingerprint is not 32 hex digits, or a newer release wrote one of the files.
    """

    def __init__(self, path: Path, fingerprint: str, readers: Sequence[Path] = ()) -> None:
        self.path = path
        self.fingerprint = _hex(fingerprint, "fingerprint")
        self._own = _Scan(path, fingerprint)
        self._scans = [self._own, *(_Scan(reader, fingerprint) for reader in readers)]
        self._descriptor: int | None = None

    @property
    def damaged(self) -> list[int]:
        """Numbers, counted from 1, of the run's own lines that are skipped because their checksum is wrong."""
        return self._own.damaged

    @property
    def records(self) -> int:
        """Number of the run's own evaluations with this fingerprint, as many as `history` yields."""
        return self._own.records

    @property
    def foreign(self) -> int:
        """Number of lines with another fingerprint, in all files."""
        return sum(scan.foreign for scan in self._scans)

    def refresh(self) -> None:
        """Index the lines that other processes appended to any of the files since they were last read."""
        for scan in self._scans:
            scan.refresh()

    def append(self, key: str, evaluation: Evaluation) -> None:
        """Append an evaluation as one line, written with one system call.

        The line survives a kill of this process; only `sync` makes it survive a power cut. Positions that are known
        already keep their values. An evaluation with an error is kept in the history but gives no values.

        Raises:
            ValueError: the key is not 32 hex digits, or the evaluation has no error and does not have one value and one
                cross-entropy per sequence of the trial.
            OSError: the line could not be written; the journal is as it was before.
        """
        asked = evaluation.trial.fidelity.sequences
        lengths = len(evaluation.values), len(evaluation.cross_entropy)
        if evaluation.error is None and lengths != (asked, asked):
            raise ValueError(
                f"evaluation has {lengths[0]} values and {lengths[1]} cross-entropies for {asked} sequences; "
                "give one of each per sequence"
            )
        line = encode(self.fingerprint, _hex(key, "key"), evaluation)
        if self._descriptor is None:
            self._descriptor = self._open()
        self._write(self._descriptor, line)
        self._own.keep(line)

    def _open(self) -> int:
        self._own.refresh()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _BINARY, 0o666)
        torn = os.fstat(descriptor).st_size - self._own.end
        if torn < 0:
            os.close(descriptor)
            raise ValueError(f"{self.path} lost {-torn} bytes since it was opened; open the journal again")
        if torn:
            _log.warning("%s: %d bytes of an unfinished last line cut", self.path, torn)
            os.ftruncate(descriptor, self._own.end)
        sync_folder(self.path.parent)
        if self._own.end == 0:
            line = header()
            self._write(descriptor, line)
            self._own.take(line)
        return descriptor

    def _write(self, descriptor: int, line: bytes) -> None:
        try:
            written = 0
            while written < len(line):
                written += os.write(descriptor, line[written:])
        except BaseException:
            os.ftruncate(descriptor, self._own.end)
            raise

    def sync(self) -> None:
        """Flush all appended lines to disk, so that they survive a power cut."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Flush all lines to disk and close the file; a later `append` opens the file again."""
        if self._descriptor is not None:
            self.sync()
            os.close(self._descriptor)
            self._descriptor = None

    def known(self, key: str, fidelity: Fidelity) -> Known:
        """Return the known value and cross-entropy at each position of `fidelity`, in its order."""
        found: Known = [None] * fidelity.sequences
        _hex(key, "key")
        for scan in self._scans:
            for record in scan.find(key, fidelity):
                first = record.fidelity.start - fidelity.start
                for i, pair in enumerate(zip(record.values, record.cross_entropy, strict=True), first):
                    if 0 <= i < len(found) and found[i] is None:
                        found[i] = pair
            if None not in found:
                break
        return found

    def missing(self, key: str, fidelity: Fidelity) -> list[Fidelity]:
        """Return the positions of `fidelity` whose values are not known, as the fewest fidelities, in order."""
        known = enumerate(self.known(key, fidelity), fidelity.start)
        return fidelity.parts(position for position, pair in known if pair is None)

    def lookup(self, key: str, trial: Trial) -> Evaluation | None:
        """Return the answer to `trial` from known values, with 0 seconds, or None if a position is not known."""
        pairs = [pair for pair in self.known(key, trial.fidelity) if pair is not None]
        if len(pairs) < trial.fidelity.sequences:
            return None
        return Evaluation(trial, tuple(v for v, _ in pairs), tuple(c for _, c in pairs))

    def history(self) -> Iterator[Record]:
        """Yield the run's own evaluations in the order they were appended, with errors and repetitions."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            while file.tell() < self._own.end:
                line = file.readline()
                if valid(line) and not is_header(line) and key_of(line)[0] == self._own.fingerprint:
                    yield decode(line)


def _hex(text: str, what: str) -> str:
    if not _HEX.fullmatch(text):
        raise ValueError(
            f"journal {what} {text!r} is not 32 hex digits; make it with `digest` or `Space.key`"
        )
    return text
