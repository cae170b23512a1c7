"""What the terminal shows line by line: results, notes beside them, errors in one line, warnings."""

import logging
import os

from rich.console import Console

console = Console()
errors = Console(stderr=True)


def fail(error: BaseException | str) -> int:
    """Print an error in one line to the error stream; the exit code for bad input."""
    errors.print(f"paretopress: {_text(error)}", style="red", markup=False, highlight=False, soft_wrap=True)
    return 2


def _text(error: BaseException | str) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    return " ".join(text.split())


def say(text: str) -> None:
    """Print one line of plain text."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Print one line beside the results, to the error stream."""
    errors.print(f"paretopress: {text}", markup=False, highlight=False, soft_wrap=True)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def settle_output() -> None:
    """Let the project's own warnings through and keep those of libraries out; for the program, not the package."""
    log = logging.getLogger("paretopress")
    if not any(isinstance(handler, _Notes) for handler in log.handlers):
        log.addHandler(_Notes(logging.WARNING))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not console.is_terminal:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
