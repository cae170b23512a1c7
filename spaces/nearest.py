"""The hint that an error message gives about an unknown name."""

import difflib
from collections.abc import Iterable

_LISTED = 20  # A model may have thousands of layers, too many to list.


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown name.

    The hint asks `did you mean 'x'?` if a known name is close, and lists the first twenty known names in order.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{hint}known: {', '.join(names[:_LISTED])}{more}"
