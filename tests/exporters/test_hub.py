"""Pushing to a small server that answers as the Hub does, and to none."""

import base64
import json
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from paretopress.exporters.hub import check_repository, push


class Hub(ThreadingHTTPServer):
    """The requests that an upload of small files makes; keeps what was asked for and sent."""

    def __init__(self, private: bool = True, refuse: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.private = private
        self.refuse = refuse
        self.created: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.reply({"id": "me/model", "private": self.server.private, "siblings": [], "sha": "0" * 40})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.refuse:
            self.reply({"error": "no rights"}, 403)
        elif self.path.endswith("/repos/create"):
            self.server.created = json.loads(body)
            self.reply({"url": f"{self.server.url}/me/model"})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            kinds = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            self.reply({"files": kinds})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.reply({"commitUrl": f"{self.server.url}/me/model/commit/1", "commitOid": "1" * 40})
        else:
            self.reply({})

    def reply(self, content: dict[str, Any], code: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        del code, size


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        log_in(monkeypatch, server.url)
        yield server
        server.shutdown()
        thread.join()


def log_in(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setenv("HF_TOKEN", "hf_test")


def folder(path: Path) -> Path:
    path.mkdir()
    (path / "paretopress.json").write_text("{}")
    (path / "README.md").write_text("# Compressed\n")
    return path


def test_a_private_repository_with_all_files(hub: Hub, tmp_path: Path) -> None:
    line = push(folder(tmp_path / "out"), "me/model")
    assert line == f"pushed: {hub.url}/me/model (private)"
    assert hub.created == {"organization": "me", "name": "model", "visibility": "private"}
    assert hub.files == {"paretopress.json": b"{}", "README.md": b"# Compressed\n"}


def test_public_only_when_asked_for(hub: Hub, tmp_path: Path) -> None:
    hub.private = False
    out = folder(tmp_path / "out")
    with pytest.raises(
        OSError, match="not pushed, me/model is public already; .* with --overwrite and --public"
    ):
        push(out, "me/model")
    assert not hub.files
    assert push(out, "me/model", public=True).endswith("/me/model (public)")
    assert hub.created["visibility"] == "public"
    assert len(hub.files) == 2


def test_a_public_upload_is_not_advised_to_who_did_not_ask_for_it(hub: Hub, tmp_path: Path) -> None:
    hub.private = False
    with pytest.raises(OSError, match="is public already") as caught:
        push(folder(tmp_path / "out"), "me/model")
    assert "hf upload" not in str(caught.value)


def test_a_refusal_is_told_with_the_command_for_later(hub: Hub, tmp_path: Path) -> None:
    hub.refuse = True
    out = folder(tmp_path / "out")
    later = re.escape(f"{out} is complete, push it later: hf upload me/model {out} . --private")
    with pytest.raises(OSError, match=rf"not pushed, the Hub refused: no rights; {later}"):
        push(out, "me/model")


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        log_in(monkeypatch, url)
        with pytest.raises(OSError, match=f"not pushed, the upload to {url} broke off: .*; .* push it later"):
            push(folder(tmp_path / "out"), "me/model")


@pytest.mark.parametrize("name", ["model", "a/b/c", "me/", "/model", "me/a model", "https://hub/me/model"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ValueError, match="is no repository of the Hub; write OWNER/NAME"):
        check_repository(name)
