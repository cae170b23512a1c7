"""The command line as a program: how errors and interruptions end it, and with which exit code."""

import signal
import sys
from types import FrameType

import typer

from . import console
from .commands import app


def main() -> None:
    """Run the command line; bad input ends it with one line and exit code 2, an interruption with exit code 130."""
    console.settle_output()
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="paretopress", standalone_mode=False)
    except KeyboardInterrupt:
        code = 130
    except (ValueError, OSError) as error:
        code = console.fail(error)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("paretopress"):
            raise
        code = console.fail(error)
    except Exception as error:
        code = _usage(error)
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Treat SIGTERM like Ctrl-C."""
    del number, frame
    raise KeyboardInterrupt


def _usage(error: Exception) -> int:
    """Return the exit code for an exception of typer, and print its message; raise any other exception again.

    The exception may be of click's own classes or of typer's copies of them. So a usage error is recognised by its
    method `format_message`.
    """
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, typer.Abort):
        return 130
    describe = getattr(error, "format_message", None)
    if describe is None:
        raise error
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "paretopress"
    return console.fail(f"{describe().rstrip('.?')}; see `{command} --help`")
