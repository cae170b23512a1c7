"""Output to the terminal: results on standard output; notes, warnings and errors on standard error."""

import logging
import os

from rich.console import Console

console = Console()
errors = Console(stderr=True)


def fail(error: BaseException | str) -> int:
    """Print an error in one line to standard error, and return the exit code for bad input, 2."""
    errors.print(f"paretopress: {_text(error)}", style="red", markup=False, highlight=False, soft_wrap=True)
    return 2


def _text(error: BaseException | str) -> str:
    """Return the message of an error in one line; that of a system error is its file and the reason."""
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    return " ".join(text.split())


def say(text: str) -> None:
    """Print one line of plain text to standard output."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Print one line that is not a result to standard error."""
    errors.print(f"paretopress: {text}", markup=False, highlight=False, soft_wrap=True)


class _Notes(logging.Handler):
    """Log handler that prints each message as a note."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a log record as a note."""
        note(record.getMessage())


def settle_output() -> None:
    """Print this package's warnings as notes, and silence the messages of libraries.

    Only the command-line program calls this function; importing the package changes no output.
    """
    log = logging.getLogger("paretopress")
    if not any(isinstance(handler, _Notes) for handler in log.handlers):
        log.addHandler(_Notes(logging.WARNING))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not console.is_terminal:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
