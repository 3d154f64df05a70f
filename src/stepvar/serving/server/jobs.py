"""Video jobs: their states, as OpenAI's videos API has them, and their files."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from stepvar.media.video import Video
from stepvar.serving.server.errors import RequestError, as_request_error
from stepvar.serving.server.replies import report, size_of
from stepvar.serving.server.requests import Work
from stepvar.serving.server.settings import ServerSettings
from stepvar.serving.server.worker import Done, Failed, Progress
from stepvar.utils.log import logger

Status = Literal["queued", "in_progress", "completed", "failed"]


@dataclass(eq=False)
class VideoJob:
    """A video that was asked for.

    Attributes:
        identity: the server's own word for it, which nobody guesses.
        seconds, size: of the video: as asked for, then as they are.
        file: the MP4, once it is completed.
        thumbnail: its first frame as WebP.
        warnings: what was left out of its prompts, once it is completed.
        fetched: whether somebody has downloaded it.
        readers: downloads that are being sent; the file stays until the last of them has ended.
    """

    identity: str
    work: Work
    model: str
    seconds: str
    size: str
    created: int
    status: Status = "queued"
    progress: int = 0
    completed: int | None = None
    error: RequestError | None = None
    file: Path | None = None
    thumbnail: bytes = b""
    cost: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
    fetched: bool = False
    readers: int = 0

    @property
    def ended(self) -> bool:
        return self.status in ("completed", "failed")

    def to_dict(self, keep_seconds: float) -> dict[str, Any]:
        """The job as the API shows it; ``seed``, ``report`` and ``warnings`` are our own."""
        found: dict[str, Any] = {
            "id": self.identity,
            "object": "video",
            "created_at": self.created,
            "completed_at": self.completed,
            "expires_at": None if self.completed is None else self.completed + int(keep_seconds),
            "model": self.model,
            "prompt": self.work.prompt,
            "progress": self.progress,
            "remixed_from_video_id": None,
            "seconds": self.seconds,
            "size": self.size,
            "status": self.status,
            "seed": self.work.seeds[0],
            "error": None,
        }
        if self.error is not None:
            found["error"] = {"code": self.error.code or "invalid_request", "message": str(self.error)}
        return found if self.cost is None else {**found, "report": self.cost, "warnings": self.warnings}


class VideoJobs:
    """The jobs of one server, in memory; their files are in a folder of their own that goes with the server."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._jobs: OrderedDict[str, VideoJob] = OrderedDict()
        self._folder: Path | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Removes all files."""
        for task in self._tasks:
            task.cancel()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def unfinished(self) -> bool:
        return bool(self._tasks)

    @property
    def waiting(self) -> bool:
        """Whether there is a finished video that nobody has downloaded yet."""
        return any(job.status == "completed" and not job.fetched for job in self._jobs.values())

    def new(self, work: Work, model: str, seconds: str, size: str) -> VideoJob:
        self._forget()
        job = VideoJob(f"video_{secrets.token_hex(16)}", work, model, seconds, size, int(time.time()))
        self._jobs[job.identity] = job
        return job

    def follow(self, job: VideoJob, feed: Any) -> None:
        """Lets a job's state go on with its work."""
        task = asyncio.create_task(self._follow(job, feed))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def find(self, identity: str) -> VideoJob:
        """Raises a RequestError, 404, if there is no such job, or none any more."""
        self._forget()
        if identity not in self._jobs:
            raise RequestError(404, f"video {identity!r}: there is none, or it has expired", code="video_not_found")
        return self._jobs[identity]

    def list(self, after: str | None, limit: int, newest_first: bool) -> tuple[list[VideoJob], bool]:
        """Jobs behind another one in order of their creation, and whether there are more."""
        self._forget()
        jobs = list(self._jobs.values())
        if newest_first:
            jobs.reverse()
        if after is not None:
            jobs = jobs[jobs.index(self.find(after)) + 1 :]
        return jobs[:limit], len(jobs) > limit

    def remove(self, job: VideoJob) -> None:
        self._jobs.pop(job.identity, None)
        job.work.tell(None)  # nobody follows it any more
        if job.file is not None and not job.readers:
            job.file.unlink(missing_ok=True)

    @contextmanager
    def reading(self, job: VideoJob) -> Iterator[None]:
        """Within it the file of a job stays, even if the job is removed.

        Raises:
            RequestError: 404 if it was removed before.
        """
        self.find(job.identity)
        job.readers += 1
        try:
            yield
        finally:
            job.readers -= 1
            if job.identity not in self._jobs:
                self.remove(job)

    def _forget(self) -> None:
        """Removes what has expired, and the oldest of too many."""
        ended = [job for job in self._jobs.values() if job.ended]
        for place, job in enumerate(ended):
            old = (job.completed or job.created) + self.settings.keep_seconds < time.time()
            if old or len(ended) - place > self.settings.max_videos:
                self.remove(job)

    async def _follow(self, job: VideoJob, feed: Any) -> None:
        """Until the job has ended, or was deleted."""
        while not job.ended:
            event = await feed.next()
            if event is None:
                return
            if isinstance(event, Progress):
                job.status, job.progress = "in_progress", min(99, int(100 * event.share))
            elif isinstance(event, Failed):
                self._fail(job, event.error)
            elif isinstance(event, Done):
                try:
                    await self._keep(job, event)
                except Exception as error:  # such as a full disk
                    logger.error("video could not be written", exc_info=error)
                    self._fail(job, error)
        job.work.image = None  # only the result is kept

    def _fail(self, job: VideoJob, error: BaseException) -> None:
        job.error, job.status, job.completed = as_request_error(error), "failed", int(time.time())

    async def _keep(self, job: VideoJob, done: Done) -> None:
        """Writes the video of a job."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="stepvar-videos-"))
        video: Video = done.result
        path = await asyncio.to_thread(video.save, self._folder / f"{job.identity}.mp4", metadata=done.texts)
        job.thumbnail, job.cost = await asyncio.to_thread(_thumbnail, video), report(done)
        job.warnings = done.warnings
        job.file, job.size, job.seconds = path, size_of(video), f"{video.seconds:g}"
        job.progress, job.completed, job.status = 100, int(time.time()), "completed"
        if job.identity not in self._jobs:  # deleted meanwhile
            self.remove(job)


def _thumbnail(video: Video) -> bytes:
    file = BytesIO()
    Image.fromarray(video.frames[0]).save(file, "WEBP")
    return file.getvalue()
