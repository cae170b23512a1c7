import json
import logging
import math
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from paretopress.evaluators.journal.journal import Journal
from paretopress.evaluators.trial import Evaluation, Fidelity, Trial
from paretopress.spaces.storage.files import digest

ROOT = Path(__file__).parents[3]
PRINT = digest("fingerprint")
KEYS = [digest(name) for name in "abc"]


def evaluation(fidelity: Fidelity, *values: float, number: int = 0, error: str | None = None) -> Evaluation:
    entropies = tuple(value + 1 for value in values)
    return Evaluation(Trial(number, (1, 2), fidelity), values, entropies, 0.25, error)


def measured(start: int, stop: int) -> Evaluation:
    return evaluation(Fidelity(0, start, stop, 16), *(i / 7 for i in range(start, stop)))


def same(first: float, second: float) -> bool:
    return first == second or (math.isnan(first) and math.isnan(second))


class JournalAgainstDict(RuleBasedStateMachine):
    """Random appends, reopenings and torn tails; a plain dict says what must be known."""

    fidelities = st.builds(
        lambda seed, start, count, length, data: Fidelity(seed, start, start + count, length, data),
        st.integers(0, 1),
        st.integers(0, 6),
        st.integers(1, 5),
        st.sampled_from([8, 16]),
        st.sampled_from(["calibration", "heldout"]),
    )

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.path = Path(self.folder.name, "journal.jsonl")
        self.other = Journal(Path(self.folder.name, "other.jsonl"), PRINT)
        self.journal = Journal(self.path, PRINT, [self.other.path])
        self.own: dict[tuple[str, str, int, int, int], tuple[float, float]] = {}
        self.others: dict[tuple[str, str, int, int, int], tuple[float, float]] = {}
        self.appended: list[tuple[str, Fidelity, str | None]] = []

    def teardown(self) -> None:
        self.journal.close()
        self.other.close()
        self.folder.cleanup()

    @rule(
        key=st.sampled_from(KEYS),
        fidelity=fidelities,
        values=st.lists(st.floats(), min_size=5, max_size=5),
        error=st.sampled_from([None, None, 'out of "memory"\n']),
        ours=st.booleans(),
    )
    def append(
        self, key: str, fidelity: Fidelity, values: list[float], error: str | None, ours: bool
    ) -> None:
        answer = evaluation(fidelity, *values[: fidelity.sequences], error=error)
        (self.journal if ours else self.other).append(key, answer)
        if ours:
            self.appended.append((key, fidelity, error))
        if error is None:
            known = self.own if ours else self.others
            for i, pair in enumerate(zip(answer.values, answer.cross_entropy, strict=True), fidelity.start):
                known.setdefault((key, fidelity.data, fidelity.seed, fidelity.length, i), pair)

    @rule()
    def reopen(self) -> None:
        self.journal.close()
        self.journal = Journal(self.path, PRINT, [self.other.path])

    @rule(torn=st.binary(min_size=1, max_size=30).filter(lambda tail: b"\n" not in tail))
    def die_while_writing(self, torn: bytes) -> None:
        self.journal.close()
        with self.path.open("ab") as file:
            file.write(torn)
        self.journal = Journal(self.path, PRINT, [self.other.path])

    @rule(key=st.sampled_from(KEYS), fidelity=fidelities)
    def ask(self, key: str, fidelity: Fidelity) -> None:
        self.journal.refresh()
        known = self.others | self.own
        places = [
            (key, fidelity.data, fidelity.seed, fidelity.length, i)
            for i in range(fidelity.start, fidelity.stop)
        ]
        expected = [known.get(place) for place in places]
        for pair, answer in zip(expected, self.journal.known(key, fidelity), strict=True):
            if pair is None or answer is None:
                assert pair is answer
            else:
                assert all(map(same, pair, answer))
        gaps = self.journal.missing(key, fidelity)
        inside = [i for gap in gaps for i in range(gap.start, gap.stop)]
        assert inside == [place[-1] for place, pair in zip(places, expected, strict=True) if pair is None]
        assert all(gap.stop < after.start for gap, after in pairwise(gaps))
        assert {replace(gap, start=0, stop=0) for gap in gaps} <= {replace(fidelity, start=0, stop=0)}
        found = self.journal.lookup(key, Trial(7, (3,), fidelity))
        assert (found is None) == (None in expected)
        if found is not None:
            assert found.trial == Trial(7, (3,), fidelity)
            assert all(map(same, found.values, [pair[0] for pair in expected if pair]))

    @invariant()
    def history_is_what_was_appended(self) -> None:
        records = [(record.key, record.fidelity, record.error) for record in self.journal.history()]
        assert records == self.appended
        assert self.journal.records == len(records)
        assert self.journal.damaged == []


TestJournalAgainstDict = JournalAgainstDict.TestCase
TestJournalAgainstDict.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


@given(st.lists(st.floats(), min_size=1, max_size=6))
def test_floats_come_back_exactly(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    path = tmp_path_factory.mktemp("floats") / "journal.jsonl"
    answer = evaluation(Fidelity(0, 0, len(values), 8), *values)
    journal = Journal(path, PRINT)
    journal.append(KEYS[0], answer)
    journal.close()
    found = Journal(path, PRINT).lookup(KEYS[0], answer.trial)
    assert found is not None
    for old, new in zip(
        answer.values + answer.cross_entropy, found.values + found.cross_entropy, strict=True
    ):
        assert same(old, new)
        assert math.copysign(1, old) == math.copysign(1, new) or math.isnan(old)


def three_lines(path: Path) -> bytes:
    journal = Journal(path, PRINT)
    for start in (0, 2, 4):
        journal.append(KEYS[0], measured(start, start + 2))
    journal.close()
    return path.read_bytes()


def test_a_line_is_a_checksum_and_json_without_nan(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, PRINT)
    journal.append(KEYS[0], evaluation(Fidelity(0, 0, 2, 8), math.nan, -math.inf))
    journal.close()
    head, line = (json.loads(line[9:]) for line in path.read_bytes().splitlines())
    assert head == {"format_version": 1, "kind": "journal"}
    assert line[:8] == [PRINT, KEYS[0], "calibration", 0, 8, 0, 2, ["nan", "-inf"]]


def test_the_last_line_may_end_at_every_byte(tmp_path: Path) -> None:
    whole = three_lines(tmp_path / "whole.jsonl")
    last = whole.rindex(b"\n", 0, -1) + 1
    path = tmp_path / "journal.jsonl"
    for size in range(last, len(whole)):
        path.write_bytes(whole[:size])
        journal = Journal(path, PRINT)
        assert [f.start for f in journal.missing(KEYS[0], Fidelity(0, 0, 6, 16))] == [4]
        assert journal.damaged == []
        journal.append(KEYS[0], measured(4, 6))
        journal.close()
        assert path.read_bytes() == whole


def test_the_header_may_end_at_every_byte(tmp_path: Path) -> None:
    whole = three_lines(tmp_path / "whole.jsonl")
    path = tmp_path / "journal.jsonl"
    for size in range(whole.index(b"\n") + 1):
        path.write_bytes(whole[:size])
        assert three_lines(path) == whole


def test_no_flipped_byte_changes_a_value(tmp_path: Path) -> None:
    whole = three_lines(tmp_path / "whole.jsonl")
    asked = Fidelity(0, 0, 6, 16)
    truth = Journal(tmp_path / "whole.jsonl", PRINT).known(KEYS[0], asked)
    lines = whole.splitlines(keepends=True)
    path = tmp_path / "journal.jsonl"
    for place in range(len(whole) - 1):
        # A space becomes a line end; any other byte changes in one bit.
        mask = 0x2A if whole[place] == ord(" ") else 1 << place % 8
        path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
        journal = Journal(path, PRINT)
        hit = next(n for n in range(1, 5) if place < sum(map(len, lines[:n])))
        lost = [n for n in range(2, 5) if n == hit or (n == hit + 1 and whole[place] == ord("\n"))]
        expected = [None if 2 + i // 2 in lost else pair for i, pair in enumerate(truth)]
        assert journal.known(KEYS[0], asked) == expected
        assert hit in journal.damaged


def test_damage_is_reported_and_survived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "journal.jsonl"
    lines = three_lines(path).splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[1], b"\n", lines[2].replace(b"16", b"17"), lines[3]]))
    with caplog.at_level(logging.WARNING):
        journal = Journal(path, PRINT)
    assert journal.damaged == [3, 4]
    assert "2 damaged lines skipped (line 3, 4)" in caplog.text
    journal.append(KEYS[0], measured(2, 4))
    assert journal.missing(KEYS[0], Fidelity(0, 0, 6, 16)) == []
    journal.close()
    assert [record.fidelity.start for record in Journal(path, PRINT).history()] == [0, 4, 2]


def test_other_fingerprints_answer_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    three_lines(path)
    other = Journal(path, digest("other"))
    assert (other.foreign, other.records, list(other.history())) == (3, 0, [])
    assert other.missing(KEYS[0], Fidelity(0, 0, 6, 16)) == [Fidelity(0, 0, 6, 16)]


def test_errors_are_history_and_no_answer(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", PRINT)
    failed = Evaluation(Trial(3, (1,), Fidelity(0, 0, 2, 16)), (), (), 1.5, "out of memory")
    journal.append(KEYS[0], failed)
    assert journal.lookup(KEYS[0], failed.trial) is None
    (record,) = journal.history()
    assert (record.number, record.error, record.seconds, record.tokens) == (3, "out of memory", 1.5, 32)
    journal.append(KEYS[0], measured(0, 2))
    assert journal.lookup(KEYS[0], failed.trial) is not None
    journal.close()


def test_the_first_value_stays(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", PRINT)
    fidelity = Fidelity(0, 0, 1, 16)
    journal.append(KEYS[0], evaluation(fidelity, 1.0))
    journal.append(KEYS[0], evaluation(fidelity, 2.0))
    assert journal.known(KEYS[0], fidelity) == [(1.0, 2.0)]
    assert [record.values for record in journal.history()] == [(1.0,), (2.0,)]
    journal.close()


def test_only_the_last_lines_are_kept_at_hand(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", PRINT)
    keys = [digest(number) for number in range(300)]
    for key in keys:
        journal.append(key, measured(0, 1))
    for key in (keys[0], keys[-1]):
        journal.append(key, measured(1, 2))
        assert journal.known(key, Fidelity(0, 0, 2, 16)) == [(0.0, 1.0), (1 / 7, 8 / 7)]
    journal.path.unlink()
    found = [journal.known(key, Fidelity(0, 0, 1, 16)) for key in keys]
    assert found.index([(0.0, 1.0)]) == 300 - (256 - 2)
    journal.close()


def test_readers_are_never_written_and_may_be_missing(tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    torn = three_lines(other) + b"torn"
    other.write_bytes(torn)
    journal = Journal(tmp_path / "journal.jsonl", PRINT, [other, tmp_path / "missing.jsonl"])
    assert journal.missing(KEYS[0], Fidelity(0, 0, 8, 16)) == [Fidelity(0, 6, 8, 16)]
    journal.append(KEYS[0], measured(6, 8))
    assert journal.missing(KEYS[0], Fidelity(0, 0, 8, 16)) == []
    journal.close()
    assert other.read_bytes() == torn
    assert journal.records == 1
    assert not (tmp_path / "missing.jsonl").exists()


def test_a_reader_that_began_anew_answers_nothing_wrong(tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"

    def write(key: str) -> int:
        journal = Journal(other, PRINT)
        for start in (0, 2, 4):
            journal.append(key, evaluation(Fidelity(0, start, start + 2, 16), 0.5, 1.5))
        journal.close()
        return other.stat().st_size

    asked = Fidelity(0, 2, 4, 16)
    size = write(KEYS[0])
    journal = Journal(tmp_path / "journal.jsonl", PRINT, [other])
    assert journal.missing(KEYS[0], asked) == []
    other.unlink()
    assert journal.missing(KEYS[0], asked) == [asked]
    assert write(KEYS[1]) == size
    assert journal.missing(KEYS[0], asked) == [asked]


def test_nothing_is_written_before_the_first_append(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, PRINT)
    assert journal.missing(KEYS[0], Fidelity(0, 0, 2, 16))
    assert list(journal.history()) == []
    journal.close()
    assert not path.exists()


def test_a_second_process_reads_while_this_one_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    code = (
        "import sys; from pathlib import Path; from tests.evaluators.journal.test_journal import *\n"
        "journal = Journal(Path(sys.argv[1]), PRINT)\n"
        "for i in range(100_000):\n    journal.append(digest(i), measured(i, i + 1)); print(i, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    reader, seen = None, 0
    for _ in range(50):
        told = int(process.stdout.readline())
        reader = reader or Journal(path, PRINT)
        reader.refresh()
        assert reader.damaged == []
        assert told < reader.records
        assert seen <= reader.records
        seen = reader.records
        known = reader.known(digest(told), Fidelity(0, told, told + 1, 16))
        assert known == [(measured(told, told + 1).values[0], measured(told, told + 1).cross_entropy[0])]
    process.kill()
    printed = process.communicate()[0].split()
    after = Journal(path, PRINT)
    assert after.damaged == []
    # A last number cut by the kill may stand for a smaller one, never for a larger one.
    assert after.records > (int(printed[-1]) if printed else 0)
    assert [record.fidelity.start for record in after.history()] == list(range(after.records))


def test_a_failed_write_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    before = three_lines(path)
    journal = Journal(path, PRINT)
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        journal.append(KEYS[0], measured(6, 8))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert journal.missing(KEYS[0], Fidelity(0, 4, 8, 16)) == [Fidelity(0, 6, 8, 16)]
    journal.append(KEYS[0], measured(6, 8))
    journal.close()
    assert Journal(path, PRINT).missing(KEYS[0], Fidelity(0, 0, 8, 16)) == []


def test_wrong_uses_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with pytest.raises(ValueError, match="journal fingerprint 'x' is not 32 hex digits"):
        Journal(path, "x")
    journal = Journal(path, PRINT)
    with pytest.raises(ValueError, match="journal key 'abc' is not 32 hex digits"):
        journal.append("abc", measured(0, 2))
    with pytest.raises(ValueError, match="1 values and 1 cross-entropies for 2 sequences; give one of each"):
        journal.append(KEYS[0], evaluation(Fidelity(0, 0, 2, 16), 1.0))
    three_lines(path)
    size = path.stat().st_size
    shortened = Journal(path, PRINT)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"lost {size} bytes since it was opened; open the journal again"):
        shortened.append(KEYS[0], measured(0, 2))


def test_a_newer_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    payload = b'{"format_version":2,"kind":"journal"}'
    path.write_bytes(b"%08x %s\n" % (crc32(payload), payload))
    with pytest.raises(ValueError, match="format_version 2, this release reads up to 1; upgrade paretopress"):
        Journal(path, PRINT)


def test_opening_decodes_nothing_and_keeps_little(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, PRINT)
    count = 20_000
    for i in range(count):
        journal.append(digest(i), measured(0, 8))
    journal.close()
    code = (
        "import sys, time, tracemalloc; from pathlib import Path; from tests.evaluators.journal.test_journal import *\n"
        "path = Path(sys.argv[1]); start = time.process_time(); journal = Journal(path, PRINT)\n"
        "print(time.process_time() - start)\n"
        "tracemalloc.start(); again = Journal(path, PRINT); print(tracemalloc.get_traced_memory()[1])\n"
        "assert journal.records == again.records == int(sys.argv[2])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path), str(count)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    seconds, peak = map(float, run.stdout.split())
    assert seconds < count * 15e-6
    assert peak < count * 400
