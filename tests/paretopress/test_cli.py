"""The command line's own behaviour; what its commands do is tested in `tests/end_to_end`."""

import os
import signal
import sys
from typing import NoReturn

import pytest

from paretopress import cli, commands


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["paretopress", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert isinstance(end.value.code, int)
    return end.value.code


COMMANDS = (
    "search",
    "submit",
    "build",
    "sensitivities",
    "refit",
    "status",
    "show",
    "evaluate",
    "export",
    "import",
)


def test_help_without_arguments(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch) == 0
    found = capsys.readouterr().out
    assert run(monkeypatch, "--help") == 0
    assert capsys.readouterr().out == found
    for command in COMMANDS:
        assert f"\n  {command} " in found


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, command, "--help") == 0
    found = capsys.readouterr().out
    assert found.startswith(f"Usage: paretopress {command} ")
    assert max(map(len, found.splitlines())) <= 80


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_any_command_with_130(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> NoReturn:
        os.kill(os.getpid(), number)
        raise AssertionError("the signal did nothing")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(commands, "front_of", interrupted)
    assert run(monkeypatch, "show", "runs/x") == 130
    assert signal.getsignal(signal.SIGTERM) == before
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "hidden"),
    [
        (ValueError("fact; remedy"), True),
        (OSError("fact; remedy"), True),
        (ModuleNotFoundError("fact; remedy"), True),
        (ModuleNotFoundError("fact", name="paretopress.spaces.gone"), False),
        (TypeError("a bug"), False),
        (RuntimeError("a bug"), False),
    ],
)
def test_bad_input_is_told_and_bugs_are_shown(
    error: Exception, hidden: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: object) -> NoReturn:
        raise error

    monkeypatch.setattr(commands, "front_of", fails)
    if hidden:
        assert run(monkeypatch, "show", "runs/x") == 2
        assert capsys.readouterr().err == "paretopress: fact; remedy\n"
    else:
        monkeypatch.setattr(sys, "argv", ["paretopress", "show", "runs/x"])
        with pytest.raises(type(error)):
            cli.main()
