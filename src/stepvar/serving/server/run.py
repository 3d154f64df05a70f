"""The application in uvicorn, until a signal ends it."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from stepvar.errors import UsageError
from stepvar.serving.server.logs import FACTS
from stepvar.serving.server.protocol import Protocol
from stepvar.serving.server.service import Service
from stepvar.utils.log import logger

ENDING = tuple(
    number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None
)
BACKLOG = 2048
CONNECTIONS = 1000
"""At once; more are answered with 503."""
STALLED = 60
"""Seconds after which a client that reads nothing of what was sent to it is cut off."""
LAST = 10
"""Seconds that the end of the server waits for answers that are being sent."""


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Runs an application on a socket that listens; returns when a signal has ended it and its work is done.

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
    asyncio.run(_Server(config, service).serve(sockets=[listener]))
    if service.worker.failure is not None:
        raise service.worker.failure


class _Server(uvicorn.Server):
    """Ends on the first signal when the work is done, on the second one at once."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service, self._signal = service, ""

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


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        UsageError: if the address cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"host={host!r}: {error.strerror}; give an address of this machine") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit it; Linux only
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * STALLED)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UsageError(f"host={host!r}, port={port}: {error.strerror}; choose another, or 0 for a free one") from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Where clients find the server, as their ``base_url``."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def is_public(listener: socket.socket) -> bool:
    """Whether other machines reach it."""
    host = listener.getsockname()[0]
    return not (host.startswith("127.") or host == "::1")
