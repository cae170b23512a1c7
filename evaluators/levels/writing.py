"""Writing one part of the level database while the next one is computed."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from ...spaces.levels.packed import Packed
from ...spaces.storage.database import Errors, LevelDatabase


class Writer:
    """Writes parts in order in a thread of its own, at most one at a time; a context.

    Leaving it waits for the part in hand.

    Args:
        database: where parts go; whoever reads what was just written calls `finish` first.
        progress: called with each part's name once it is written.
    """

    def __init__(self, database: LevelDatabase, progress: Callable[[str], None]) -> None:
        self._database, self._progress = database, progress
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._in_hand: tuple[str, Future[None]] | None = None

    def write(self, part: str, levels: Mapping[str, Mapping[str, Packed]], errors: Errors) -> None:
        """Begin to write, as soon as the part before is written.

        Raises:
            Exception: what writing the part before raised.
        """
        self.finish()
        self._in_hand = part, self._thread.submit(self._database.write, part, levels, errors)

    def finish(self) -> None:
        """Wait until everything is written.

        Raises:
            Exception: what writing raised; the part is not recorded.
        """
        if self._in_hand is not None:
            (part, writing), self._in_hand = self._in_hand, None
            writing.result()
            self._progress(part)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self._thread.shutdown()
