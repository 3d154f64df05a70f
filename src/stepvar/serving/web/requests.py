"""The requests that run for the page, by visitor, so that each can stop its own."""

from __future__ import annotations

from threading import Event

from stepvar.serving.web.downloads import Downloads
from stepvar.serving.web.studio import Studio


class Requests:
    """What serves the requests of all visitors.

    Args:
        studio: runs them.
        downloads: where results go.
    """

    def __init__(self, studio: Studio, downloads: Downloads) -> None:
        self.studio = studio
        self.downloads = downloads
        self._running: dict[tuple[str | None, bool], Event] = {}

    def begin(self, visitor: str | None, video: bool) -> Event:
        """What will stop the request that a visitor begins now: one for an image, one for a video at a time."""
        self.cancel(visitor, video)  # what was cancelled may still be on its way to its end
        stop = self._running[visitor, video] = Event()
        return stop

    def end(self, visitor: str | None, video: bool, stop: Event) -> None:
        """The request that ``stop`` belongs to has ended; the visitor may have begun another."""
        if self._running.get((visitor, video)) is stop:
            del self._running[visitor, video]

    def cancel(self, visitor: str | None, video: bool) -> None:
        """Stops what a visitor runs behind the next scale, or takes it out of the line."""
        if stop := self._running.get((visitor, video)):
            stop.set()

    def leave(self, visitor: str | None) -> None:
        """A visitor has closed the page."""
        for video in (False, True):
            self.cancel(visitor, video)

    def close(self) -> None:
        """Stops everything."""
        for stop in list(self._running.values()):
            stop.set()
        self.studio.close()
