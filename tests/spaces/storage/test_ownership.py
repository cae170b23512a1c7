"""What may be replaced and deleted: regular files of the program, never links, devices or files of others."""

import os
from pathlib import Path

import pytest

from paretopress.spaces.storage.ownership import check_output_file, check_removable, database_files, kind_of


def read_number(path: Path) -> int:
    return int(path.read_text())


def refusal(path: Path, *, overwrite: bool) -> str:
    with pytest.raises((FileExistsError, PermissionError)) as error:
        check_output_file(path, "number", read_number, overwrite=overwrite)
    return str(error.value)


def test_what_lies_at_a_path_has_a_name(tmp_path: Path) -> None:
    file, link, dangling, pipe = (tmp_path / name for name in ("file", "link", "dangling", "pipe"))
    file.write_text("1")
    link.symlink_to(file)
    dangling.symlink_to(tmp_path / "nothing")
    os.mkfifo(pipe)
    found = [
        kind_of(path)
        for path in (file, link, dangling, pipe, tmp_path, tmp_path / "nothing", Path("/dev/null"))
    ]
    assert found == ["a file", "a link", "a link", "a pipe", "a folder", None, "a device"]


def test_a_new_file_needs_nothing(tmp_path: Path) -> None:
    for overwrite in (False, True):
        check_output_file(tmp_path / "new", "number", read_number, overwrite=overwrite)


def test_a_file_of_the_kind_is_replaced_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    assert refusal(tmp_path / "one", overwrite=False) == (
        f"{tmp_path / 'one'} exists already; give another name, or replace it with --overwrite"
    )
    check_output_file(tmp_path / "one", "number", read_number, overwrite=True)


def test_nothing_else_is_replaced_even_when_asked(tmp_path: Path) -> None:
    text, link, dangling, closed = (tmp_path / name for name in ("text", "link", "dangling", "closed"))
    text.write_text("thesis")
    closed.write_text("1")
    closed.chmod(0o444)
    link.symlink_to(closed)
    dangling.symlink_to(tmp_path / "new")
    for path, message in (
        (text, f"{text} is no number, so it is not replaced (invalid literal"),
        (link, f"{link} is a link; give the name of a new file"),
        (dangling, f"{dangling} is a link"),
        (Path("/dev/null"), "/dev/null is a device"),
        (tmp_path, f"{tmp_path} is a folder"),
        (closed, f"{closed} is write-protected; make it writable or give another name"),
    ):
        assert refusal(path, overwrite=True).startswith(message)


def test_files_of_a_database_are_known_by_name_and_kind(tmp_path: Path) -> None:
    own = ["block-000.safetensors", "block-000.safetensors.json", "ends.safetensors", "manifest.json"]
    for name in (*own, "model.safetensors", "notes.json", "manifest.json.bak", "block-x.safetensors"):
        (tmp_path / name).write_text("")
    (tmp_path / "block-001.safetensors").symlink_to(tmp_path / "model.safetensors")
    (tmp_path / "block-002.safetensors").mkdir()
    assert [path.name for path in database_files(tmp_path)] == own
    assert database_files(tmp_path / "nothing") == []


def test_a_protected_folder_is_found_before_anything_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed")
    check_removable([tmp_path / "open" / "a"])
    with pytest.raises(
        PermissionError, match="closed is write-protected, so nothing was removed; make it writable"
    ):
        check_removable([tmp_path / "open" / "a", tmp_path / "closed" / "b"])
