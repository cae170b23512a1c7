"""The command line's own behaviour; what its commands do is tested in `tests/end_to_end`."""

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from transformers import OPTConfig

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
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(commands, "front_of", interrupted)
    assert run(monkeypatch, "show", "runs/x") == 130
    signal.signal(signal.SIGINT, ignored)
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


def test_a_search_for_llama_cpp_over_a_model_it_cannot_hold_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = tmp_path / "model", tmp_path / "run"
    config = OPTConfig(
        hidden_size=24, num_hidden_layers=1, vocab_size=8, ffn_dim=32, architectures=["OPTForCausalLM"]
    )
    config.save_pretrained(model)
    (model / "model.safetensors").touch()
    arguments = ("configs/gguf.yaml", "--set", f"model={model}", "--run", str(folder))
    for more in ((), ("--dry-run",)):
        assert run(monkeypatch, "search", *arguments, *more) == 2
        assert "models of type 'opt' are not written as GGUF" in capsys.readouterr().err
    assert not folder.exists()
