"""Errors as OpenAI's clients read them: a status and ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException

from stepvar.core.values import shown
from stepvar.errors import StepvarError, UsageError, printable

CLIENT_LEFT = 499
"""The status that the log has of a request whose client did not wait for the answer; nobody receives it."""

_TYPES = {429: "rate_limit_error"}
_NAMED = re.compile(r"([a-z_]+)\b")
_SOURCES = (("body",), ("query",), ("path",))
"""How FastAPI begins the place of what is wrong."""
_FIELDS = {"height": "size", "width": "size", "aspect_ratio": "size", "class_labels": "prompt"}
"""What arguments of the pipeline are called in a request."""


class RequestError(HTTPException):
    """A request that is answered with an error; of Starlette's kind, which FastAPI lets through wherever it is raised.

    Attributes:
        code: a word for programs, or None.
        param: the field that is wrong, or None.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, printable(message), dict(headers or {}))
        self.code, self.param = code, param

    def __str__(self) -> str:
        return self.detail

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status_code, "server_error" if self.status_code >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def busy(waiting: int, seconds: float) -> RequestError:
    """The answer where the queue is full.

    Args:
        waiting: images in it.
        seconds: after which there will be room again.
    """
    return RequestError(
        429,
        f"the queue is full ({waiting} images are waiting); try again in {seconds:.0f} s",
        code="queue_full",
        headers={"Retry-After": f"{seconds:.0f}"},
    )


def unavailable(message: str, code: str, seconds: int = 5) -> RequestError:
    """The answer of a server that takes no work now."""
    return RequestError(503, message, code=code, headers={"Retry-After": str(seconds)})


def as_request_error(error: BaseException, fields: Collection[str] = ()) -> RequestError:
    """What a client is told about an error.

    Args:
        fields: of the request, one of which the message of a :class:`~stepvar.errors.UsageError` may name first.
    """
    if isinstance(error, RequestError):
        return error
    if isinstance(error, UsageError):
        named = _NAMED.match(str(error))
        name = "" if named is None else _FIELDS.get(named[1], named[1])
        param = name if name in fields else None
        return RequestError(400, str(error), param=param)
    if isinstance(error, StepvarError):
        return RequestError(500, str(error), code="generation_failed")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return RequestError(500, "out of memory; ask for a smaller size or a shorter video", code="out_of_memory")
    return RequestError(500, "internal error; the log of the server has the id of this request", code="internal_error")


def invalid_fields(errors: Sequence[Mapping[str, Any]]) -> RequestError:
    """What pydantic found wrong with a request; the first of it in one line."""
    first = errors[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UsageError):
        return as_request_error(cause)
    place = [str(part) for part in first["loc"][first["loc"][:1] in _SOURCES :]]
    name = place[0] if place else "body"
    if first["type"] == "json_invalid":
        return RequestError(400, f"body: is not JSON ({first.get('ctx', {}).get('error', first['msg'])})")
    if first["type"] == "missing":
        return RequestError(400, f"{name}: is missing", param=name)
    if not place:
        return RequestError(400, "body: must be a JSON object, sent as Content-Type: application/json")
    said = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    said = "a whole number of fewer digits" if first["type"] == "int_parsing_size" else said
    return RequestError(400, f"{name}={shown(first.get('input'))}: must be {said}", param=name)
