"""Pictures as they are sent: reduced, written anew, and kept while there is room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from sweeps.report.pictures import reduced

ROOM_BYTES = 64_000_000
MAX_AT_ONCE = 2
"""Pictures that are decoded side by side; each may take 150 MB while it is."""


class Thumbnails:
    """The pictures asked for last.

    Args:
        room: bytes of them that are kept.
    """

    def __init__(self, room: int = ROOM_BYTES) -> None:
        self._room, self.num_bytes = room, 0
        self._kept: OrderedDict[tuple[str, int, int, int | None], tuple[str, bytes]] = OrderedDict()
        self._lock, self._turns = threading.Lock(), threading.BoundedSemaphore(MAX_AT_ONCE)

    def get(self, path: Path, side: int | None) -> tuple[str, bytes] | None:
        """Kind (`png`, `jpeg`) and bytes; None where the file is no picture (any more).

        Args:
            path: of the picture.
            side: what its longer side has at most, in pixels; None leaves it as large as it is.
        """
        try:
            stat = path.stat()
        except OSError:
            return None
        key = (str(path), stat.st_mtime_ns, stat.st_size, side)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        with self._turns:
            made = reduced(path, side)
        if made is not None:
            self._keep(key, made)
        return made

    def _keep(self, key: tuple[str, int, int, int | None], made: tuple[str, bytes]) -> None:
        with self._lock:
            if key in self._kept or len(made[1]) > self._room:
                return
            self._kept[key] = made
            self.num_bytes += len(made[1])
            while self.num_bytes > self._room:
                _, (_, oldest) = self._kept.popitem(last=False)
                self.num_bytes -= len(oldest)
