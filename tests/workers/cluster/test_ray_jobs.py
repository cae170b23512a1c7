"""Addresses, logs that come again, and the autoscaler's file; jobs themselves are tested in `tests/end_to_end`."""

import http.server
import re
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("ray")

from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from paretopress.workers.cluster import ray_jobs
from paretopress.workers.cluster.ray_jobs import Jobs, _complete, _last, _Log

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("address", "whole"),
    [
        ("head", "http://head:8265"),
        ("head:80", "http://head:80"),
        ("https://head/", "https://head:8265"),
        ("http://head:8265/ray/", "http://head:8265/ray"),
        ("http://[::1]", "http://[::1]:8265"),
    ],
)
def test_an_address_is_completed(address: str, whole: str) -> None:
    assert _complete(address) == whole


@pytest.mark.parametrize("address", ["", "ray://head:10001", "http://"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(
        ValueError, match=rf"'{address}' is not the address of a Ray dashboard; give http://HEAD:8265"
    ):
        Jobs(address)


def test_where_nothing_listens_the_remedy_is_named() -> None:
    with pytest.raises(
        ConnectionError, match=r"no Ray dashboard at http://127\.0\.0\.1:1: .*; start the head node"
    ):
        Jobs("http://127.0.0.1:1")


def test_what_never_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "_CONNECT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(
            ConnectionError, match=rf"no Ray dashboard at {address}: .*timed out; start the head"
        ):
            Jobs(address)


def test_what_is_no_dashboard_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            del arguments

    monkeypatch.chdir(tmp_path)
    # Ray itself would prefer this address to the one that it is given.
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(
            ConnectionError, match=rf"{address} takes no jobs: Version check returned 404"
        ) as raised:
            Jobs(address)
        server.shutdown()
    assert len(str(raised.value).splitlines()) == 1


@given(
    st.text(min_size=1, max_size=40), st.lists(st.tuples(st.integers(1, 5), st.integers(0, 40)), max_size=5)
)
def test_a_log_that_comes_again_is_written_once(text: str, attempts: list[tuple[int, int]]) -> None:
    written: list[str] = []
    log = _Log(written.append)
    for size, stop in [*attempts, (3, len(text))]:
        for start_of in range(0, stop, size):
            if piece := text[start_of : min(start_of + size, stop)]:
                log.show(piece, start_of)
    assert "".join(written) == text


@pytest.mark.parametrize(
    ("log", "last"),
    [
        ("a\nparetopress: no model; give one\n", "no model; give one"),
        ("paretopress: 3 damaged lines skipped\nTraceback\nMemoryError\n\n", "MemoryError"),
        ("a\nModuleNotFoundError: typer\n\n", "ModuleNotFoundError: typer"),
        ("", "the job gave no reason"),
    ],
)
def test_the_last_word_of_a_log(log: str, last: str) -> None:
    assert _last(log) == last


def test_the_autoscaler_takes_its_file() -> None:
    content = yaml.safe_load((ROOT / "configs" / "cluster.yaml").read_text())
    prepared = prepare_config(content)
    validate_config(prepared)
    assert prepared["max_workers"] == 1
    assert "&" not in "".join(content["head_start_ray_commands"])


@pytest.mark.parametrize("file", ["configs/cluster.yaml", "docs/how-to/cluster.md"])
def test_options_of_ray_start_are_rays(file: str) -> None:
    known = {option for parameter in start.params for option in parameter.opts}
    text = re.sub(r"\\?\n +", " ", (ROOT / file).read_text())
    used = [re.findall(r"--[a-z-]+", line) for line in re.findall(r"ray start --.*", text)]
    assert len(used) >= 2
    assert {option for line in used for option in line} <= known
