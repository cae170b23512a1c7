"""Files of a run on a machine that does not see them."""

from pathlib import Path
from typing import Any

import pytest

from paretopress.search.site import sending
from paretopress.search.site.sending import packed, unpacked


def configuration(folder: Path) -> dict[str, Any]:
    model, table = folder / "model", folder / "table.yaml"
    (model / "inner").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / ".git").mkdir()
    (model / ".git" / "objects").write_text("not sent")
    (model / "inner" / "weights").write_bytes(b"\x00\x01")
    table.write_text("a: 1")
    return {"model": str(model), "space": {"latency": str(table), "drop": False}, "name": "n"}


def nothing() -> dict[str, Any]:
    raise AssertionError("nothing is missing")


def test_what_is_here_is_not_fetched(tmp_path: Path) -> None:
    content = configuration(tmp_path)
    assert unpacked(content, tmp_path / "sent", nothing) == content
    hub = {"model": "owner/name", "space": {"latency": None}}
    assert packed(hub) == {}
    assert unpacked(hub, tmp_path / "sent", nothing) == hub
    assert not (tmp_path / "sent").exists()


def test_what_is_missing_is_kept_by_content(tmp_path: Path) -> None:
    content = configuration(tmp_path)
    sent = packed(content)
    away = {**content, "model": "/nowhere/m", "space": {"latency": "/nowhere/t", "drop": False}}
    found = unpacked(away, tmp_path / "sent", lambda: sent)
    assert (found["name"], found["space"]["drop"]) == ("n", False)
    model = Path(found["model"])
    assert (model / "inner" / "weights").read_bytes() == b"\x00\x01"
    assert (model / "config.json").read_text() == "{}"
    assert not (model / ".git").exists()
    assert Path(found["space"]["latency"]).read_text() == "a: 1"
    assert unpacked(away, tmp_path / "sent", lambda: sent) == found
    (Path(content["model"]) / "config.json").write_text("[]")
    assert unpacked(away, tmp_path / "sent", lambda: packed(content))["model"] != found["model"]
    assert away["space"]["latency"] == "/nowhere/t"


def test_a_large_model_is_not_sent_and_named_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = configuration(tmp_path)
    monkeypatch.setattr(sending, "MOST", 3)
    assert set(packed(content)) == {"latency"}
    away = {**content, "model": "/nowhere/m"}
    assert unpacked(away, tmp_path / "sent", lambda: packed(content))["model"] == "/nowhere/m"
