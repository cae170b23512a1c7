"""What is printed beside results: errors in one line, warnings."""

import io
import logging
from collections.abc import Callable

import pytest
from rich.console import Console

from paretopress import console


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    out = io.StringIO()
    monkeypatch.setattr(console, "errors", Console(width=20, file=out))
    return out.getvalue


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("fact,\n  value [1];\n remedy"), "fact, value [1]; remedy"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), "a.txt: No such file or directory"),
        (BlockingIOError(11, "run x is in use by process 7"), "run x is in use by process 7"),
        (FileNotFoundError("no run at x"), "no run at x"),
    ],
)
def test_errors_take_one_line(error: Exception, line: str, stderr: Callable[[], str]) -> None:
    assert console.fail(error) == 2
    assert stderr() == f"paretopress: {line}\n"


def test_warnings_of_the_project_reach_the_person(stderr: Callable[[], str]) -> None:
    log = logging.getLogger("paretopress")
    before = list(log.handlers)
    try:
        console.settle_output()
        console.settle_output()
        logging.getLogger("paretopress.evaluators.journal.journal").warning("%d damaged lines", 3)
    finally:
        log.handlers[:] = before
    assert stderr() == "paretopress: 3 damaged lines\n"
