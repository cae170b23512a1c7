"""Measurement of an action's time and of the memory that the process grows by while the action runs."""

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from .speed.seven_billion import status

_EVERY = 0.02
"""Seconds between two readings of the memory."""


class Cost(NamedTuple):
    """Time and memory that an action took.

    Attributes:
        seconds: wall time of the action.
        resident: largest growth of the process's resident memory in GB, which includes pages of mapped files.
        anonymous: largest growth of its anonymous memory in GB, without mapped files, whose pages the kernel drops when
            memory is short.
    """

    seconds: float
    resident: float
    anonymous: float


def measured(action: Callable[[], object]) -> Cost:
    """Run an action and measure it; memory is the kernel's count (`VmRSS`, `RssAnon`), read every 20 ms."""
    over, before = threading.Event(), status()
    peak = dict(before)

    def watch() -> None:
        while True:
            now = status()
            peak.update({name: max(peak[name], now[name]) for name in ("VmRSS", "RssAnon")})
            if over.wait(_EVERY):
                return

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.perf_counter()
    try:
        action()
    finally:
        seconds = time.perf_counter() - began
        over.set()
        thread.join()
    resident, anonymous = ((peak[name] - before[name]) / 1e9 for name in ("VmRSS", "RssAnon"))
    return Cost(seconds, resident, anonymous)
