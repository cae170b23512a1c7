import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretopress.spaces.storage.files import (
    check_version,
    digest,
    read_json,
    read_yaml,
    remove_leftovers,
    sha256_file,
    write_atomic,
    write_json,
    write_yaml,
)

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
json_values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=5), v, max_size=4),
    max_leaves=12,
)
finite = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)


@pytest.mark.parametrize("content", ["text with ü\r\n", b"\x00\xff"])
def test_write_atomic_writes_exactly_and_leaves_nothing_else(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    write_atomic(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [path]


def test_write_atomic_obeys_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_atomic(tmp_path / "taken", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "missing" / "file", "x")


def test_a_process_killed_while_writing_never_leaves_a_part_under_the_name(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from paretopress.spaces.storage.files import write_json\n"
        "path = Path(sys.argv[1]); i = 0\n"
        "while True:\n    i += 1; write_json(path, [i] * 20_000)\n    print(i, flush=True)"
    )
    path = tmp_path / "file.json"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    process.kill()
    process.wait()
    process.stdout.close()
    value = read_json(path)
    assert len(value) == 20_000
    assert len(set(value)) == 1
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


@given(json_values)
def test_json_comes_back(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value


@given(st.dictionaries(st.text(max_size=5), st.lists(finite, max_size=3) | finite, max_size=5))
def test_yaml_comes_back(tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "value.yaml"
    write_yaml(path, value)
    assert read_yaml(path) == value


def test_json_keeps_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "x", [math.nan])
    assert math.isnan(read_json(tmp_path / "x")[0])


def test_errors_name_file_and_position(tmp_path: Path) -> None:
    path = tmp_path / "broken"
    path.write_text('{"a": 1,\n "b": }')
    with pytest.raises(
        ValueError, match=r"broken is not JSON at line 2 column 7 \(.*\); restore or delete it"
    ):
        read_json(path)
    path.write_text("a: 1\nb: [\n")
    with pytest.raises(ValueError, match="broken is not YAML at line 3 column 1"):
        read_yaml(path)
    path.write_text("a: \x01")
    with pytest.raises(ValueError, match="broken is not YAML at character 3"):
        read_yaml(path)
    path.write_bytes(b'"\xff"')
    with pytest.raises(ValueError, match=r"broken is not JSON at byte 1 \(not UTF-8\)"):
        read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "missing")


def test_versions_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    assert check_version(path, {"format_version": 1, "a": 2}) == {"format_version": 1, "a": 2}
    with pytest.raises(ValueError, match="format_version 2, this release reads up to 1; upgrade"):
        check_version(path, {"format_version": 2})
    with pytest.raises(ValueError, match=r"front.json carries no format_version"):
        check_version(path, [1])


@given(st.binary(max_size=1000))
def test_sha256_file(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(content)
    assert sha256_file(path) == hashlib.sha256(content).hexdigest()


@given(st.dictionaries(st.text(max_size=5), st.lists(finite, max_size=3) | finite, min_size=2, max_size=6))
def test_digest_ignores_the_order_of_keys_only(value: dict[str, Any]) -> None:
    turned = dict(reversed(value.items()))
    assert digest(value) == digest(turned) == digest(json.loads(json.dumps(value)))
    assert len(digest(value)) == 32
    first = next(iter(value))
    assert digest({**value, first: [value[first]]}) != digest(value)


def test_digest_is_stable_across_releases() -> None:
    assert digest({"b": (1, 2.5), "a": None}) == hashlib.sha256(b'{"a":null,"b":[1,2.5]}').hexdigest()[:32]


def test_digest_refuses_what_has_no_canonical_text() -> None:
    with pytest.raises(TypeError):
        digest({"path": Path()})
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest(math.nan)
