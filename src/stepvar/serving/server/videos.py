"""``/v1/videos``: videos as jobs, which are asked for, looked at, downloaded and deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from stepvar.serving.server.errors import RequestError
from stepvar.serving.server.jobs import VideoJob, VideoJobs
from stepvar.serving.server.logs import FACTS
from stepvar.serving.server.requests import video_work
from stepvar.serving.server.schema import VideoRequest
from stepvar.serving.server.service import service_of
from stepvar.serving.server.uploads import read_form

router = APIRouter()


@router.post("/v1/videos")
async def create(request: Request) -> Response:
    """A video from a prompt, and perhaps an image that it begins with (``input_reference``), as a job."""
    service = service_of(request)
    pipe = service.pipe()
    body, image = await read_form(request, VideoRequest, "input_reference")
    service.check_model(body.model)
    work = await to_thread.run_sync(video_work, body, pipe, service.settings, image)
    feed = service.submit(work)
    seconds = "" if body.seconds is None else f"{body.seconds:g}"
    job = service.videos.new(work, service.name, seconds, body.size)
    service.videos.follow(job, feed)
    request.scope["state"][FACTS]["video"] = job.identity
    return JSONResponse(job.to_dict(service.settings.keep_seconds))


@router.get("/v1/videos")
async def list_all(
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """All jobs, page by page."""
    service = service_of(request)
    jobs, more = service.videos.list(after, limit, order == "desc")
    shown = [job.to_dict(service.settings.keep_seconds) for job in jobs]
    ends = {"first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}
    return {"object": "list", "data": shown, "has_more": more, **ends}


@router.get("/v1/videos/{identity}")
async def retrieve(request: Request, identity: str) -> dict[str, Any]:
    """The state of a job."""
    service = service_of(request)
    return service.videos.find(identity).to_dict(service.settings.keep_seconds)


@router.get("/v1/videos/{identity}/content")
async def content(request: Request, identity: str, variant: Literal["video", "thumbnail"] = "video") -> Response:
    """The MP4 of a job, or its first frame as WebP."""
    jobs = service_of(request).videos
    job = jobs.find(identity)
    if job.status != "completed" or job.file is None:
        said = (
            f"has failed ({job.error}); ask for another"
            if job.error
            else f"is {job.status}; wait until it is completed"
        )
        raise RequestError(409, f"video {identity!r}: {said}", code="not_completed")
    if variant == "thumbnail":
        return Response(job.thumbnail, media_type="image/webp")
    job.fetched = True
    return _Download(jobs, job, job.file)


class _Download(FileResponse):
    """The file of a job: whole, or 404 where the job was removed before the first byte."""

    def __init__(self, jobs: VideoJobs, job: VideoJob, file: Path) -> None:
        super().__init__(file, media_type="video/mp4", filename=f"{job.identity}.mp4")
        self._jobs, self._job = jobs, job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._jobs.reading(self._job):
            await super().__call__(scope, receive, send)


@router.delete("/v1/videos/{identity}")
async def delete(request: Request, identity: str) -> dict[str, Any]:
    """Removes a job; one that waits or runs is stopped."""
    service = service_of(request)
    job = service.videos.find(identity)
    service.leave(job.work)
    service.videos.remove(job)
    return {"id": identity, "object": "video.deleted", "deleted": True}
