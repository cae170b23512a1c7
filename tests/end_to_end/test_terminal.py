"""What a person sees in a terminal."""

import fcntl
import json
import os
import re
import struct
import termios
import threading
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Driver, Tiny
from tests.end_to_end.tiny import LENGTH, evolution

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A pseudo-terminal and all that was written to it."""

    def __init__(self, columns: int) -> None:
        self.master, self.slave = os.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self.name = os.ttyname(self.slave)
        self.written = bytearray()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        while True:
            try:
                part = os.read(self.master, 65536)
            except OSError:
                return
            if not part:
                return
            self.written += part

    def close(self) -> str:
        """The text, once everybody who writes has finished."""
        os.close(self.slave)
        self.reader.join(timeout=30)
        os.close(self.master)
        return self.written.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [80, 100])
def test_a_search_in_a_terminal(columns: int, driver: Driver, tiny: Tiny, tmp_path: Path) -> None:
    search = [{"method": "dp", "tokens": LENGTH}, evolution(2)]
    config = tiny.config(tmp_path, search=search, budgets=[{"bits": 3.5, "bytes": 30_000}, {"bits": 4.5}])
    terminal = Terminal(columns)
    code = driver.wait(driver.start("search", config, cwd=tmp_path, log=terminal.name))
    written = terminal.close()
    assert code == 0, written
    assert "\x1b[" in written
    text = ESCAPE.sub("", written)
    for stage in (
        "open model and text",
        "check the dense model",
        "build levels",
        "search",
        "validate and report",
    ):
        assert stage in text
    assert re.search(r"search +\S+ +100% +[\d,.]+ tokens/s +best fitness 0\.\d+ 0\.\d+", text)
    assert re.search(r"[\d.]+ blocks/s", text)
    table, _, last = text[text.index("tiny: ") :].rpartition("\nreport: ")
    assert max(map(len, table.splitlines())) <= columns
    assert "…" not in table
    front = json.loads((tmp_path / "runs" / "tiny" / "front.json").read_text())
    for row in [*front["baselines"], *front["points"]]:
        assert re.search(
            rf"{row['bytes'] / 1000:.4g} KB +{row['heldout_kl']:.5f} .* {row['heldout_perplexity']:.3f} ",
            table,
        )
    assert last.splitlines()[1:] == [
        "next: paretopress export runs/tiny --budget 'bits 4.5' --output tiny-bits-4.5"
    ]
    for noise in ("Warning", "warning", "Loading", "it/s", "HiGHS", "Trial "):
        assert noise not in text


def test_a_refusal_in_a_terminal(driver: Driver, tiny: Tiny, tmp_path: Path) -> None:
    config = tiny.config(tmp_path)
    terminal = Terminal(80)
    code = driver.wait(driver.start("search", config, "--set", "seed=x", cwd=tmp_path, log=terminal.name))
    text = ESCAPE.sub("", terminal.close())
    assert code == 2
    assert (
        text
        == f"paretopress: {config}: seed: Input should be a valid integer, unable to parse string as an integer (got 'x')\n"
    )
