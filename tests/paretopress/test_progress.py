"""Progress tells how far a job is, how fast, and how long it may take."""

import io
import time

import pytest
from rich.console import Console

from paretopress import console
from paretopress.progress import Lines, progress
from paretopress.search.run.event import Event


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "monotonic", found)
    return found


def test_lines_tell_when_a_stage_begins_every_ten_seconds_and_at_its_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    listen = Lines()
    listen(Event("open", 0))
    for tokens in (4_000, 5_000, 54_000, 104_000, 111_111, 111_111):
        listen(Event("search", tokens, 111_111, "best 0.5"))
        clock.now += 6
    assert capsys.readouterr().out.splitlines() == [
        "open",
        "search: 4,000 of 111,111 tokens, best 0.5",
        "search: 54,000 of 111,111 tokens, 4,167 tokens/s, at most 14 s left, best 0.5",
        "search: 111,111 of 111,111 tokens, 4,463 tokens/s, best 0.5",
    ]


def test_bars_show_rate_and_time_left(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(
        console, "console", Console(force_terminal=True, width=80, file=out, color_system=None)
    )
    with progress() as listen:
        listen(Event("build levels", 1, 8, "block-000"))
        listen(Event("search", 100_000, 400_000, "best 0.5 [red]"))
        clock.now += 100
        listen(Event("search", 200_000, 400_000, "best 0.25 0.125 [red]"))
        clock.now += 15
    line = next(line for line in reversed(out.getvalue().splitlines()) if line.startswith("search"))
    assert " 50% 1,000 tokens/s 3:05 best 0.25 0.125 [red]" in line
    assert len(line) <= 80
