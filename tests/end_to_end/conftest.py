"""One trained model, one finished run and one driver for all tests of this folder."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from paretopress import cli
from paretopress.evaluators.trial import Evaluation, Trial
from paretopress.search.site import site
from paretopress.workers.pool import LocalPool
from tests.end_to_end.tiny import (
    LENGTH,
    ROOT,
    evolution,
    save_tiny,
    subprocess_environment,
    tiny_config,
    write_config,
    write_text,
)


@dataclass(frozen=True)
class Tiny:
    """A model folder and a text file."""

    model: Path
    text: Path

    def content(self, **changes: Any) -> dict[str, Any]:
        """A configuration of a second's work."""
        return tiny_config(self.model, self.text, **changes)

    def config(self, folder: Path, **changes: Any) -> Path:
        """The same, written to `folder/NAME.yaml`."""
        content = self.content(**changes)
        return write_config(folder / f"{content['name']}.yaml", content)


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str


Shell = Callable[..., Answer]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    text = write_text(folder / "text.jsonl")
    return Tiny(save_tiny(folder / "model", text), text)


def shell(*arguments: str | Path) -> Answer:
    """The command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["paretopress", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.argv = before
    return Answer(code, out.getvalue(), err.getvalue())


class Driver:
    """Commands as processes that start at once.

    Args:
        warm_up: the command that the driver itself runs first.
    """

    def __init__(self, *warm_up: str | Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.end_to_end.driver", *map(str, warm_up)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=subprocess_environment() | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )

    def start(
        self, *arguments: str | Path, cwd: Path, die_at: int | None = None, log: str | Path = "log"
    ) -> int:
        """The pid of a command that now runs; its output goes to `log` in `cwd`."""
        return self._answer(
            arguments=[str(argument) for argument in arguments],
            cwd=str(cwd),
            log=str(cwd / log),
            die_at=die_at,
        )

    def wait(self, pid: int) -> int:
        """The exit code of a command that was started, or minus the signal that ended it."""
        return self._answer(wait=pid)

    def run(self, *arguments: str | Path, cwd: Path, die_at: int | None = None) -> int:
        """Start a command and wait for it."""
        return self.wait(self.start(*arguments, cwd=cwd, die_at=die_at))

    def _answer(self, **command: object) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        """End the driver."""
        self.process.communicate(timeout=60)


@pytest.fixture(scope="session")
def driver(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    folder = tmp_path_factory.mktemp("driver")
    search = [evolution(1), {"method": "dp", "tokens": LENGTH}, {"method": "optuna", "trials": 2}]
    found = Driver("search", tiny.config(folder, search=search), "--run", folder / "run")
    found.run("--help", cwd=folder)
    yield found
    found.close()


@dataclass(frozen=True)
class Finished:
    """A run of two budgets that is not written to any more, and what the command said."""

    folder: Path
    config: Path
    answer: Answer

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "tiny"

    @property
    def front(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run / "front.json").read_text())
        return found


@pytest.fixture(scope="session")
def finished(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    config = tiny.config(folder, budgets=[{"bits": 3.5}, {"bits": 4.5}])
    before = Path.cwd()
    os.chdir(folder)
    try:
        return Finished(folder, config, shell("search", config))
    finally:
        os.chdir(before)


class RecordingPool(LocalPool):
    """A pool that remembers what it was asked."""

    asked: ClassVar[list[Trial]] = []

    def run(self, trials: Iterable[Trial]) -> Iterator[Evaluation]:
        """Remember and pass on."""
        wanted = list(trials)
        self.asked.extend(wanted)
        return super().run(wanted)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """What is asked of the workers from now on."""
    found: list[Trial] = []
    monkeypatch.setattr(RecordingPool, "asked", found)
    monkeypatch.setattr(site, "LocalPool", RecordingPool)
    return found
