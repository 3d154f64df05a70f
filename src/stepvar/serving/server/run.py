"""The application in uvicorn, until a signal ends it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from stepvar.serving.server.logs import FACTS
from stepvar.serving.server.protocol import Protocol
from stepvar.serving.server.service import Service
from stepvar.utils.log import logger

ENDING = tuple(
    number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None
)
CONNECTIONS = 1000
"""At once; more are answered with 503."""
LAST = 10
"""Seconds that the end of the server waits for answers that are being sent."""


def serve(app: FastAPI, listener: socket.socket) -> int:
    """Runs an application on a socket that listens; returns when a signal has ended it and its work is done.

    Returns:
        0; or the number of a second signal, which has ended it before.

    Raises:
        Exception: whatever kept the model from being loaded.
    """
    config = uvicorn.Config(
        app,
        http=Protocol,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=LAST,
        lifespan="on",
        ws="none",
    )
    service: Service = app.state.service
    server = _Server(config, service)
    asyncio.run(server.serve(sockets=[listener]))
    if service.worker.failure is not None:
        raise service.worker.failure
    return server.forced


class _Server(uvicorn.Server):
    """Ends on the first signal when the work is done, on the second one at once."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service, self._signal, self.forced = service, "", 0

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """In place of uvicorn's, which raises the signals again at the end: to finish what runs is no failure."""
        if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
            yield
            return
        before = {number: signal.getsignal(number) for number in ENDING}
        for number in ENDING:
            if before[number] is not signal.SIG_IGN:  # what the caller ignores, as nohup does, stays ignored
                signal.signal(number, self.handle_exit)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.service.draining:
            self.should_exit = self.force_exit = True
            self.forced = sig
            return
        self._signal = signal.Signals(sig).name
        self.service.drain()

    async def on_tick(self, counter: int) -> bool:
        if self._signal:  # logged here: a signal may have come in the middle of a line
            logger.info("ending: finishes what was taken", extra={FACTS: {"signal": self._signal}})
            self._signal = ""
        if self.service.worker.failure is not None or (self.service.draining and self.service.finished):
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.forced:  # asyncio now cancels what is left, and uvicorn would log that of each request as an error
            logger.info("ending at once", extra={FACTS: {"signal": signal.Signals(self.forced).name}})
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
