"""Runs commands in forked children, so that a command costs no imports and can be killed at any moment.

The arguments are a command that is run first, in this process: it loads and compiles what the others inherit.
Then come lines of JSON. A command has `arguments`, the folder `cwd`, the file `log` for both output streams, and
`die_at`: the number of the file operation below `cwd` at which the child kills itself, or null; the answer is the
child's pid. `wait` with a pid is answered with the exit code, or minus the signal that ended it; before that a pid
stays its child's, even after its end.
"""

import contextlib
import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from paretopress.cli import main


def _die_at(operation: int, folder: str) -> None:
    """Kill this process when it opens for writing, or renames, for the given time below `folder`."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "os.rename" or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if writes and os.path.abspath(str(arguments[0])).startswith(folder):
            count += 1
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _child(arguments: list[str], cwd: str, log: str, die_at: int | None) -> None:
    # Whoever started the tests may ignore Ctrl-C, as `nohup` and shells' background jobs do.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if die_at is not None:
        _die_at(die_at, str(Path(cwd).resolve()))
    sys.argv = ["paretopress", *arguments]
    code = 1
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Taking down what the driver has loaded would take longer than most commands.
        os._exit(code)


def _warm_up() -> None:
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
        main()
    gc.freeze()  # so that no child's garbage collector looks through what it inherited, which would copy it


def _serve() -> None:
    for line in sys.stdin:
        command = json.loads(line)
        if "wait" in command:
            _, status = os.waitpid(command["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            _child(**command)


if __name__ == "__main__":
    _warm_up()
    _serve()
