"""Writing of one part of the level database while the next one is computed."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from ...spaces.levels.packed import Packed
from ...spaces.storage.database import Errors, LevelDatabase


class Writer:
    """Writes the parts of a level database in order, one at a time, in a thread of its own.

    It is a context manager; leaving the context waits for the part that is being written.

    Args:
        database: level database that the parts are written to; call `finish` before reading a part that was just
            written.
        progress: function that is called with the name of each part once it is written.
    """

    def __init__(self, database: LevelDatabase, progress: Callable[[str], None]) -> None:
        self._database, self._progress = database, progress
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._in_hand: tuple[str, Future[None]] | None = None

    def write(self, part: str, levels: Mapping[str, Mapping[str, Packed]], errors: Errors) -> None:
        """Begin to write a part, as soon as the part before is written.

        Args:
            part: name of the part in the database.
            levels: packed levels by layer path and label.
            errors: errors of the levels by layer path and label.

        Raises:
            Exception: writing the part before failed; any exception of the database.
        """
        self.finish()
        self._in_hand = part, self._thread.submit(self._database.write, part, levels, errors)

    def finish(self) -> None:
        """Wait until everything is written.

        Raises:
            Exception: writing a part failed, which is then not recorded; any exception of the database.
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
