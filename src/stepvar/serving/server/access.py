"""What stands before every request: its id, the API key, the size of its body, the line in the log."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import time
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stepvar.serving.server.errors import CLIENT_LEFT, RequestError, as_request_error, unavailable
from stepvar.serving.server.logs import FACTS
from stepvar.serving.server.metrics import Metrics
from stepvar.serving.server.settings import ServerSettings
from stepvar.utils.log import logger

OPEN = ("/health", "/ready")
"""Paths that need no key: those of load balancers."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Access:
    """ASGI middleware; arguments as of :func:`~stepvar.serving.server.create_app`."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics, keys: Sequence[str]) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self._keys = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        identity = given if _ID.fullmatch(given) else uuid.uuid4().hex
        facts: dict[str, Any] = {"request_id": identity, "method": scope["method"], "path": scope["path"]}
        scope.setdefault("state", {})[FACTS] = facts
        begun, status = time.perf_counter(), 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = identity
            await send(message)

        try:
            self._check_key(scope["path"], headers)
            await self.app(scope, self._bounded(headers, receive), send_named)
        except ClientDisconnect:  # before its request had arrived
            status = status or CLIENT_LEFT
        except asyncio.CancelledError:  # the server ends, and waits for no answer
            if status:
                raise
            await answer(unavailable("the server has ended; try another", "shutting_down"))(scope, receive, send_named)
        except Exception as error:
            refused = as_request_error(error)
            if not isinstance(error, RequestError):
                logger.error("internal error", exc_info=error, extra={FACTS: {"request_id": identity}})
            if not status:
                await answer(refused)(scope, receive, send_named)
        finally:
            self._record(scope, facts, status, time.perf_counter() - begun)

    def _check_key(self, path: str, headers: Headers) -> None:
        """Compares with every key, in a time that says nothing of how much of one was right."""
        if not self._keys or path in OPEN:
            return
        kind, _, key = headers.get("authorization", "").partition(" ")
        digest = _digest(key.strip())
        if kind.lower() != "bearer" or not sum(hmac.compare_digest(digest, known) for known in self._keys):
            message = "API key: missing or wrong; send it as 'Authorization: Bearer KEY'"
            raise RequestError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _bounded(self, headers: Headers, receive: Receive) -> Receive:
        """The body of a request, up to its limit and in its time."""
        form = headers.get("content-type", "").lower().startswith("multipart/")
        most = self.settings.max_upload if form else self.settings.max_body
        stated = headers.get("content-length", "")
        if stated.isdigit() and (len(stated) > 18 or int(stated) > most):
            raise _too_large(most)
        size, whole, deadline = 0, False, time.monotonic() + self.settings.body_seconds

        async def receive_bounded() -> Message:
            nonlocal size, whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except asyncio.TimeoutError:
                raise RequestError(408, "body: did not arrive in time; send it again", code="timeout") from None
            size += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if size > most:
                raise _too_large(most)
            return message

        return receive_bounded

    def _record(self, scope: Scope, facts: dict[str, Any], status: int, seconds: float) -> None:
        """Counts the request by its route and method: what clients make up is not counted one by one."""
        status = facts.pop("status", status) or CLIENT_LEFT
        path = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if path != "other" and scope["method"] in _METHODS else "other"
        self.metrics.requests.labels(path, method, str(status)).inc()
        self.metrics.request_seconds.labels(path).observe(seconds)
        if scope["path"] not in OPEN:
            logger.info("request", extra={FACTS: facts | {"status": status, "seconds": round(seconds, 4)}})


def answer(error: RequestError) -> JSONResponse:
    """An error as a response."""
    return JSONResponse(error.body(), error.status_code, error.headers)


def event_of(error: RequestError) -> bytes:
    """An error as a server-sent event, where the answer has begun already."""
    return b"event: error\ndata: " + json.dumps(error.body()).encode() + b"\n\n"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _too_large(most: int) -> RequestError:
    return RequestError(413, f"body: more than {most} bytes; send less", code="body_too_large")
