"""HTTP below the application: who sends no whole request in time, and what is no HTTP."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from stepvar.serving.server.errors import RequestError

HEAD_SECONDS = 20.0
"""In which the head of a request has to arrive, counted from the connection or from its first byte.

Uvicorn has no such limit: clients that open connections and send nothing could take all of them, see
:data:`~stepvar.serving.server.run.CONNECTIONS`.
"""

HEAD_BYTES = 2**19
"""Of the head of a request; more than asyncio hands over at once. h11 has a limit of its own, httptools none."""

if TYPE_CHECKING:
    _Base = Any
else:
    _Base = AutoHTTPProtocol  # that of httptools or of h11, whichever is installed


class Protocol(_Base):  # type: ignore[misc]
    """Uvicorn's protocol; errors of its own are as :mod:`.errors` has them."""

    _waiting: asyncio.TimerHandle | None = None
    _head: int | None = None
    """Bytes of the head that is arriving."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head is not None:
            self._head += len(data)
            if self._head > HEAD_BYTES and not self.transport.is_closing():
                self._refuse(431, f"head: more than {HEAD_BYTES} bytes; send fewer headers")
        if self.cycle is None or self.cycle.response_complete:  # no request is being answered
            self._wait()
        else:
            self._arrived()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Called by httptools alone, as is the next one."""
        self._head = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head = None
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what cannot be parsed."""
        self._refuse(400, f"request: is not HTTP ({msg})")

    def _refuse(self, status: int, message: str) -> None:
        body = json.dumps(RequestError(status, message).body()).encode()
        line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"
        head = f"{line}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def _wait(self) -> None:
        if self._waiting is None:
            self._waiting = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _arrived(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
