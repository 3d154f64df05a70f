"""What the routes of one server share, and how a request follows its work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from fastapi import Request

from stepvar.pipeline import Pipeline
from stepvar.serving.server.errors import RequestError, as_request_error, unavailable
from stepvar.serving.server.jobs import VideoJobs
from stepvar.serving.server.metrics import Metrics
from stepvar.serving.server.requests import Work
from stepvar.serving.server.settings import ServerSettings
from stepvar.serving.server.worker import Done, Failed, Worker

QUIET = 10.0
"""Seconds after which a stream says that it is still there."""


class Feed:
    """What happens to a request, from the thread that generates to the loop that answers."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Any] = asyncio.Queue()

    def tell(self, event: Any) -> None:
        """Takes an event, in any thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed: the server has ended
            return

    async def next(self, timeout: float | None = None) -> Any:
        """The next event; None after so many seconds without one."""
        try:
            return await asyncio.wait_for(self._events.get(), timeout)
        except asyncio.TimeoutError:
            return None


class Service:
    """One server; arguments as of :func:`~stepvar.serving.server.create_app`.

    Attributes:
        draining: whether it takes no more work, since it is to end.
    """

    def __init__(self, factory: Callable[[], Pipeline], settings: ServerSettings) -> None:
        self.settings = settings
        self.metrics = Metrics(lambda: self.worker.pipe.device if self.worker.pipe is not None else None)
        self.worker = Worker(factory, settings, self.metrics)
        self.videos = VideoJobs(settings)
        self.started = int(time.time())
        self.draining = False
        self._drain_until = 0.0

    @property
    def ready(self) -> bool:
        return self.worker.ready and not self.draining

    def pipe(self) -> Pipeline:
        """The pipeline, to look at.

        Raises:
            RequestError: 503 while it is loaded or the server ends.
        """
        if self.draining:
            raise unavailable("the server is ending; try another", "shutting_down")
        if self.worker.pipe is None or not self.worker.ready:
            raise unavailable("the model is being loaded; try again in a moment", "not_ready")
        return self.worker.pipe

    @property
    def name(self) -> str:
        """Of the model, as clients give it; a RequestError, 503, where it is not known yet."""
        return self.settings.name or self.pipe().name

    def check_model(self, asked: str | None) -> None:
        """Raises a RequestError, 404, for a model that is not the one that is served."""
        if asked not in (None, self.name):
            message = f"model={asked!r}: is not served here; it is {self.name!r}, or leave it out"
            raise RequestError(404, message, code="model_not_found", param="model")

    def submit(self, work: Work) -> Feed:
        """Queues work, and gives what happens to it; :meth:`leave` must follow, whatever happens.

        Raises:
            RequestError: 429 where the queue is full, 503 where the server ends.
        """
        self.pipe()
        feed = Feed()
        work.tell = feed.tell
        self.worker.submit(work)
        return feed

    def leave(self, work: Work) -> None:
        """Nobody waits for this work any more."""
        self.worker.leave(work)

    def drain(self) -> None:
        """Takes no more work from now on; what was taken is finished."""
        self.draining = True
        self._drain_until = time.monotonic() + self.settings.drain_seconds

    @property
    def finished(self) -> bool:
        """Whether a server that drains has nothing left to do; finished videos are kept for a while to be fetched."""
        if not self.worker.idle or self.videos.unfinished:
            return False
        return not self.videos.waiting or time.monotonic() > self._drain_until


def service_of(request: Request) -> Service:
    """That of the application which a request came to."""
    service: Service = request.app.state.service
    return service


async def watch(request: Request, feed: Feed, left: object) -> None:
    """Tells a feed when the client of a request has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    feed.tell(left)


async def results(feed: Feed, count: int, left: object) -> list[Done] | None:
    """All results of a request in order; None if its client has gone.

    Args:
        count: how many there will be.
        left: the event that says so.

    Raises:
        RequestError: if one of them failed.
    """
    found: list[Done] = []
    while len(found) < count:
        event = await feed.next()
        if event is left:
            return None
        if isinstance(event, Failed):
            raise as_request_error(event.error)
        if isinstance(event, Done):
            found.append(event)
    return sorted(found, key=lambda one: one.index)
