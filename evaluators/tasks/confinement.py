"""Confinement of lm-eval, which keeps lm-eval from printing and from running code that the user does not trust.

On its own, lm-eval renders templates as plain Jinja, which reaches all of Python, and loads metrics that it does not
know as code from the hub. While it is confined, templates are rendered in a sandbox, and the package that loads such
metrics is replaced by one that refuses.
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
    """A stand-in for the package `evaluate`, which would run code from the hub; it refuses to load a metric.

    Attributes:
        asked: names of the metrics that lm-eval asked for.
    """

    def __init__(self) -> None:
        super().__init__("evaluate")
        self.asked: list[str] = []

    def load(self, name: str, *_: object, **__: object) -> NoReturn:
        """Note the name of the metric and refuse it; lm-eval swallows the error."""
        self.asked.append(name)
        raise ValueError(name)


@contextmanager
def confined(trust_remote_code: bool) -> Iterator[list[str]]:
    """Confine lm-eval while the context lasts.

    What lm-eval prints goes to the error stream if that is a terminal, and is discarded if not. Its resampling of the
    documents, for standard errors, runs in this process.

    Args:
        trust_remote_code: whether lm-eval may load metrics that are code on the hub.

    Yields:
        A list that receives the names of the metrics that were refused because they are code on the hub.
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
    """Render templates in a sandbox, where they reach only their document, while the context lasts."""
    import lm_eval.utils
    from jinja2.sandbox import SandboxedEnvironment

    plain = lm_eval.utils.env
    sandbox = SandboxedEnvironment(undefined=plain.undefined, keep_trailing_newline=True)
    sandbox.filters |= plain.filters
    with _replaced(lm_eval.utils.__dict__, "env", sandbox):
        yield


@contextmanager
def _silence(log: logging.Logger) -> Iterator[None]:
    """Let a logger pass only critical messages while the context lasts."""
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def _replaced(mapping: MutableMapping[str, Any], name: str, value: object) -> Iterator[None]:
    """Set another value under a name of a mapping while the context lasts."""
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
