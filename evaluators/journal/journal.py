"""The journal: every evaluation, one line each, append-only; cache, log and history in one.

A line is a checksum and compact JSON:

    crc32 ["FINGERPRINT","KEY","DATA",seed,length,start,stop,[values],[cross-entropies],seconds,number,error]

Fingerprint and key have 32 hex digits, so both stand at fixed places and opening a journal decodes nothing: it
checks each line's checksum and remembers where the lines of each key are. The first line is a header with
`format_version`. A line counts when it ends; what stands after the last line end (a killed process, or one
that is writing now) is no line yet, and is cut by this file's own next append.
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

_BINARY = getattr(os, "O_BINARY", 0)  # Windows would write two characters for the end of a line
_log = logging.getLogger(__name__)
_HEX = re.compile("[0-9a-f]{32}")
_RECENT = 256
"""Lines that are kept in memory: more than a generation of offspring."""

Known = list[tuple[float, float] | None]
"""For each position of a fidelity its value and cross-entropy, or None where it was not measured."""


def key_of_values(space: Space, profile: Profile, sequences: str) -> str:
    """The key of the model that `profile` builds, measured on the sequences of a fingerprint."""
    return digest([space.key(profile), sequences])


class _Scan:
    """One file as far as it was read: where each key's lines begin. Never writes."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.fingerprint = fingerprint.encode()
        self.end = 0
        self.lines = 0
        self.records = 0
        self.foreign = 0
        self.damaged: list[int] = []
        # A single line, by far the commonest case, costs an int instead of a list.
        self._offsets: dict[bytes, int | list[int]] = {}
        self._recent: dict[int, bytes] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take in the lines that were completed since the last time."""
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
        """Index one complete line, which stands at `end`."""
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
        """`take` a line that was just appended, and keep it at hand: its model is often asked for again."""
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
        """The key's records over the order of sequences that `fidelity` belongs to, oldest first."""
        found = self._offsets.get(key.encode())
        if found is None:
            return
        wanted = place(fidelity)
        for line in self._lines([found] if isinstance(found, int) else found):
            # Another run may have begun its journal anew since this one read it.
            same = valid(line) and key_of(line) == (self.fingerprint, key.encode())
            if same and at_place(line, wanted):
                yield decode(line)

    def _lines(self, offsets: list[int]) -> list[bytes]:
        """Lines by where they begin; none if the file is gone."""
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
    """All evaluations of one run, and what other runs measured under the same fingerprint.

    Values of a key are known per position: ranges of one (data, seed, length) share them, whichever lines
    they came with. Where several lines hold a position the first wins, own lines before readers'.

    Opening reads each line once (about 2 microseconds) and keeps about 150 bytes per key; nothing is written
    before the first `append`, so a journal that another process is writing may be opened to look at.

    Args:
        path: this run's file; it may not exist yet.
        fingerprint: 32 hex digits that stand for everything that decides a value besides key and fidelity;
            lines with another one are passed over.
        readers: files of other runs, never written to; missing ones are empty.

    Raises:
        ValueError: fingerprint of another form, or a file written by a newer release.
    """

    def __init__(self, path: Path, fingerprint: str, readers: Sequence[Path] = ()) -> None:
        self.path = path
        self.fingerprint = _hex(fingerprint, "fingerprint")
        self._own = _Scan(path, fingerprint)
        self._scans = [self._own, *(_Scan(reader, fingerprint) for reader in readers)]
        self._descriptor: int | None = None

    @property
    def damaged(self) -> list[int]:
        """Numbers, from 1, of own lines that are skipped because their checksum is wrong."""
        return self._own.damaged

    @property
    def records(self) -> int:
        """Own lines of this fingerprint; `history` yields as many."""
        return self._own.records

    @property
    def foreign(self) -> int:
        """Lines of other fingerprints, in all files."""
        return sum(scan.foreign for scan in self._scans)

    def refresh(self) -> None:
        """Take in what other processes appended, here or in the readers' files, since it was read."""
        for scan in self._scans:
            scan.refresh()

    def append(self, key: str, evaluation: Evaluation) -> None:
        """Write one line with one system call; it survives the death of this process, `sync` that of power.

        Known positions keep the value they have. An evaluation with an error answers nothing later.

        Raises:
            ValueError: key of another form than `Space.key` gives, or not one value and one cross-entropy
                per sequence of the trial.
            OSError: it could not be written; the journal is as before.
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
        """Make all lines so far survive a power cut."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Sync and close; a later `append` opens again."""
        if self._descriptor is not None:
            self.sync()
            os.close(self._descriptor)
            self._descriptor = None

    def known(self, key: str, fidelity: Fidelity) -> Known:
        """What is known of each position of `fidelity`, in its order."""
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
        """The positions of `fidelity` that are not known, as the fewest ranges, in order."""
        known = enumerate(self.known(key, fidelity), fidelity.start)
        return fidelity.parts(position for position, pair in known if pair is None)

    def lookup(self, key: str, trial: Trial) -> Evaluation | None:
        """The answer to `trial` from what is known, at no seconds; None if any position is missing."""
        pairs = [pair for pair in self.known(key, trial.fidelity) if pair is not None]
        if len(pairs) < trial.fidelity.sequences:
            return None
        return Evaluation(trial, tuple(v for v, _ in pairs), tuple(c for _, c in pairs))

    def history(self) -> Iterator[Record]:
        """This run's own evaluations in the order they were made, errors and repetitions included."""
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
