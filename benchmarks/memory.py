"""What an action costs: seconds, and how much memory the process grew by while it ran."""

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from .speed.seven_billion import status

_EVERY = 0.02
"""Seconds between two looks."""


class Cost(NamedTuple):
    """What an action took.

    Attributes:
        seconds: of wall time.
        resident: most GB that the process had over what it held before, pages of mapped files included.
        anonymous: the same without mapped files, whose pages the kernel drops when memory is short.
    """

    seconds: float
    resident: float
    anonymous: float


def measured(action: Callable[[], object]) -> Cost:
    """Run the action; the memory is the kernel's count (`VmRSS`, `RssAnon`), looked at every 20 ms."""
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
