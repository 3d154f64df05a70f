"""``/v1/images``: pictures from prompts, edits, and pictures on the way as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request
from PIL import Image
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from stepvar.errors import UsageError
from stepvar.serving.server.access import event_of
from stepvar.serving.server.errors import CLIENT_LEFT, as_request_error
from stepvar.serving.server.logs import FACTS
from stepvar.serving.server.replies import encode, entry, event_fields, images_response, report, usage
from stepvar.serving.server.requests import FileFormat, Work, image_work
from stepvar.serving.server.schema import EditRequest, ImageFields, ImageRequest
from stepvar.serving.server.service import QUIET, Feed, Service, results, service_of, watch
from stepvar.serving.server.uploads import read_form
from stepvar.serving.server.worker import Done, Failed, Preview

router = APIRouter()
_LEFT = object()
_STILL_THERE = b": waiting\n\n"
"""A comment, which clients pass over."""


@router.post("/v1/images/generations")
async def generations(request: Request, body: ImageRequest) -> Response:
    """Images from a prompt."""
    return await _respond(request, body, None, "image_generation")


@router.post("/v1/images/edits")
async def edits(request: Request) -> Response:
    """An image, changed as a prompt says; for models that edit."""
    if not service_of(request).pipe().family.edits:
        raise UsageError("image: this model does not edit images; send the prompt to /v1/images/generations")
    body, image = await read_form(request, EditRequest, "image")
    return await _respond(request, body, image, "image_edit")


async def _respond(request: Request, body: ImageFields, image: Image.Image | None, event: str) -> Response:
    service, facts = service_of(request), request.scope["state"][FACTS]
    pipe = service.pipe()
    service.check_model(body.model)
    work, form = await to_thread.run_sync(image_work, body, pipe, service.settings, image)
    facts["images"] = len(work.seeds)
    feed = service.submit(work)
    if body.stream:
        return _EventStream(_events(feed, work, body, form, event), service, work)
    watching = asyncio.create_task(watch(request, feed, _LEFT))
    try:
        found = await results(feed, len(work.seeds), _LEFT)
    finally:
        watching.cancel()
        service.leave(work)
    if found is None:
        facts["status"] = CLIENT_LEFT
        return Response(status_code=CLIENT_LEFT)
    return await to_thread.run_sync(_answer, body, work, found, form)


def _answer(body: ImageFields, work: Work, found: list[Done], form: FileFormat) -> Response:
    entries = [entry(done, encode(done.result, form, done.texts), form, work.seeds[done.index]) for done in found]
    return JSONResponse(images_response(body, found, entries))


class _EventStream(StreamingResponse):
    """Server-sent events; their work is left where the client goes, or when all are sent."""

    def __init__(self, events: AsyncIterator[bytes], service: Service, work: Work) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._leave = partial(service.leave, work)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


async def _events(feed: Feed, work: Work, body: ImageFields, form: FileFormat, name: str) -> AsyncIterator[bytes]:
    """The events of a stream: pictures on the way, results, or one error."""
    shown: dict[int, list[int]] = {index: [] for index in range(len(work.seeds))}
    done = 0
    while done < len(work.seeds):
        event = await feed.next(QUIET)
        if event is None:
            yield _STILL_THERE
        elif isinstance(event, Failed):
            yield event_of(as_request_error(event.error))
            return
        elif isinstance(event, Preview) and event.step not in shown[event.index]:  # a batch that failed runs again
            fields = event_fields(body, event.image, event.index)
            fields |= {"type": f"{name}.partial_image", "partial_image_index": len(shown[event.index])}
            shown[event.index].append(event.step)
            yield await to_thread.run_sync(_event, event.image, form, {}, fields)
        elif isinstance(event, Done):
            done += 1
            fields = event_fields(body, event.result, event.index)
            fields |= {"type": f"{name}.completed", "usage": usage([event])}
            fields |= {"seed": work.seeds[event.index], "report": report(event), "warnings": event.warnings}
            yield await to_thread.run_sync(_event, event.result, form, event.texts, fields)


def _event(image: Image.Image, form: FileFormat, texts: dict[str, str], fields: dict[str, Any]) -> bytes:
    data = json.dumps({**fields, "b64_json": encode(image, form, texts)})
    return f"event: {fields['type']}\ndata: {data}\n\n".encode()
