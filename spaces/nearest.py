"""What a message says of an unknown name."""

import difflib
from collections.abc import Iterable

_LISTED = 20  # of the layers of a model, which may be thousands; keys and methods are fewer


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: `did you mean 'x'?` where one is close, and what is known, the first twenty."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{hint}known: {', '.join(names[:_LISTED])}{more}"
