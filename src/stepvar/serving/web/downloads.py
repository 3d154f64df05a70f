"""Results as files that a visitor can download; the oldest go when there are many."""

from __future__ import annotations

import re
from collections import deque
from itertools import count
from pathlib import Path
from threading import Lock

from stepvar.output import Output

KEPT = 100
"""Files that stay at most."""


class Downloads:
    """A folder of results, with their settings inside.

    Args:
        folder: which exists, and belongs to the page alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = count(1)
        self._files: deque[Path] = deque()
        self._lock = Lock()

    def add(self, output: Output, name: str = "") -> Path:
        """Writes the image of an output as PNG, or its video as MP4, under a name that says what it shows.

        Args:
            name: goes behind it.
        """
        words = re.sub("[^a-z0-9]+", "-", output.captions[0].lower()).strip("-")[:60].strip("-") or "picture"
        seed = "" if output.seeds is None else f"-{output.seeds[0]}"
        with self._lock:
            place = self.folder / str(next(self._numbers))
        place.mkdir()
        (path,) = output.save(place / f"{words}{seed}{name}.{'mp4' if output.videos else 'png'}")
        with self._lock:
            self._files.append(path)
            old = [self._files.popleft() for _ in range(len(self._files) - KEPT)]
        for one in old:
            one.unlink(missing_ok=True)
            one.parent.rmdir()
        return path
