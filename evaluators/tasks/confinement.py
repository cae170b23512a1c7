"""lm-eval without its chatter, and without its ways to run code that nobody trusted.

It renders templates as plain Jinja, which reaches all of Python, and takes metrics that it does not know from code on
the hub. Meanwhile templates are rendered in a sandbox, and the package that loads such metrics is not to be had.
"""

import io
import logging
import os
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from types import ModuleType
from typing import Any, NoReturn


class _NoMetrics(ModuleType):
    """Stands for the package `evaluate`, which runs code from the hub."""

    def __init__(self) -> None:
        super().__init__("evaluate")
        self.asked: list[str] = []

    def load(self, name: str, *_: object, **__: object) -> NoReturn:
        """Note the metric; lm-eval swallows the error."""
        self.asked.append(name)
        raise ValueError(name)


@contextmanager
def confined(trust_remote_code: bool) -> Iterator[list[str]]:
    """The time in which lm-eval runs; gives the metrics that it did not get, because they are code on the hub.

    What it prints goes to the error stream, and nowhere unless that is a terminal; it resamples in this process.
    """
    metrics = _NoMetrics()
    with ExitStack() as until:
        if not trust_remote_code:
            until.enter_context(_replaced(sys.modules, "evaluate", metrics))
        until.enter_context(_replaced(os.environ, "DISABLE_MULTIPROC", "1"))
        until.enter_context(_sandbox())
        until.enter_context(_silence(logging.getLogger("lm_eval")))
        until.enter_context(redirect_stdout(sys.stderr if sys.stderr.isatty() else io.StringIO()))
        if not sys.stderr.isatty():
            until.enter_context(redirect_stderr(io.StringIO()))
        yield metrics.asked


@contextmanager
def _sandbox() -> Iterator[None]:
    """Templates that reach nothing but their document."""
    import lm_eval.utils
    from jinja2.sandbox import SandboxedEnvironment

    plain = lm_eval.utils.env
    sandbox = SandboxedEnvironment(undefined=plain.undefined, keep_trailing_newline=True)
    sandbox.filters |= plain.filters
    with _replaced(lm_eval.utils.__dict__, "env", sandbox):
        yield


@contextmanager
def _silence(log: logging.Logger) -> Iterator[None]:
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def _replaced(mapping: MutableMapping[str, Any], name: str, value: object) -> Iterator[None]:
    """Another value under a name, for a while."""
    missing = object()
    before = mapping.get(name, missing)
    mapping[name] = value
    try:
        yield
    finally:
        if before is missing:
            del mapping[name]
        else:
            mapping[name] = before
