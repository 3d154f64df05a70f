"""The videos API: jobs with states, as OpenAI's client uses it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from PIL import Image
from starlette.responses import FileResponse

from stepvar.checkpoints import save_model
from stepvar.errors import UsageError
from stepvar.media.video import Video
from stepvar.text import WordEncoder
from tests.helpers import TINY_STAR, make_star
from tests.serving.server.servers import HeldPipeline, Server, picture, running, until

pytest.importorskip("av", reason="MP4 files need PyAV")
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")

TEXT: dict[str, Any] = {
    "vocabulary": ["a", "ball", "boat", "left", "red", "rolling"],
    "synonyms": {},
    "width": TINY_STAR.text_channels,
    "layers": 1,
    "hidden": 32,
    "max_words": 15,
}
DEFAULTS = {"guidance_scale": 3.0, "guidance_type": "apg", "temperature": {"clips": [1.0, 0.4]}, "aspect_ratio": "3:2"}
PROMPT = "a red ball rolling left"


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> HeldPipeline:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("star")
    save_model(folder, "tiny-star", make_star(), WordEncoder(**TEXT), TEXT, DEFAULTS, torch.float32)
    return HeldPipeline.load(folder)


@pytest.fixture
def server(star: HeldPipeline) -> Iterator[Server]:
    with running(lambda: star.prepare(), max_videos=2) as running_server:
        yield running_server


def photo() -> bytes:
    file = BytesIO()
    Image.fromarray(np.linspace(0, 255, 90 * 60 * 3).reshape(60, 90, 3).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def create(server: Server, **own: Any) -> Any:
    """A job, as the client reads it."""
    reference = own.pop("input_reference", None)  # the client takes files only, though the API has objects, too
    objects = {"input_reference": reference} if isinstance(reference, dict) else {}
    fields = {"seconds": "1", **own} | ({} if objects or reference is None else {"input_reference": reference})
    return server.client.videos.create(prompt=PROMPT, extra_body={"seed": 5, **objects}, **fields)


def awaited(server: Server, job: Any) -> Any:
    """The job once it has ended."""
    return server.client.videos.poll(job.id, poll_interval_ms=10)


def completed(server: Server, **own: Any) -> Any:
    job = awaited(server, create(server, **own))
    assert job.status == "completed", job.error
    return job


def test_a_video_is_asked_for_waited_for_and_downloaded(server: Server, tmp_path: Path) -> None:
    job = create(server, model="tiny-star")
    assert (job.object, job.prompt, job.model, job.seconds) == ("video", PROMPT, "tiny-star", "1")
    assert job.id.startswith("video_") and job.status in ("queued", "in_progress")
    job = awaited(server, job)
    assert (job.status, job.progress, job.size, job.error) == ("completed", 100, "48x32", None)
    assert job.completed_at >= job.created_at and job.expires_at > job.completed_at and job.seed == 5
    server.client.videos.download_content(job.id).write_to_file(tmp_path / "ball.mp4")
    frames = Video.read(tmp_path / "ball.mp4").frames
    expected = server.pipe(prompt=[PROMPT], seed=5, seconds=1).videos[0].frames
    assert frames.shape == expected.shape == (3, 32, 48, 3)
    assert Image.open(BytesIO(server.client.videos.download_content(job.id, variant="thumbnail").content)).size == (
        48,
        32,
    )


@pytest.mark.filterwarnings("ignore::stepvar.text.UnknownWordWarning")
def test_words_that_the_model_does_not_know_are_in_the_job(server: Server) -> None:
    jobs = [server.client.videos.create(prompt=prompt, seconds="1") for prompt in (PROMPT, "a red zebra")]
    known, unknown = (awaited(server, job) for job in jobs)
    assert known.warnings == []
    assert unknown.warnings == ["this model knows only the words of its vocabulary and ignores zebra"]


def test_states_follow_the_work(server: Server) -> None:
    pipe = server.pipe
    pipe.let_begin.clear()
    job = create(server)
    assert pipe.begun.wait(60) and server.client.videos.retrieve(job.id).status == "queued"
    with pytest.raises(openai.ConflictError, match="queued"):
        server.client.videos.download_content(job.id)
    pipe.let_go_on.clear()
    pipe.let_begin.set()
    pipe.in_pass.wait(60)
    pipe.let_go_on.set()
    assert awaited(server, job).progress == 100


def test_what_fails_says_why(server: Server) -> None:
    server.pipe.failing, server.pipe.failing_prompt = UsageError("seconds=1: does not fit"), PROMPT
    job = awaited(server, create(server))
    assert job.status == "failed" and job.error is not None and job.error.message == "seconds=1: does not fit"
    with pytest.raises(openai.ConflictError, match=r"has failed \(seconds=1: does not fit\); ask for another"):
        server.client.videos.download_content(job.id)


def test_jobs_are_listed_page_by_page_and_the_oldest_goes(server: Server) -> None:
    jobs = [completed(server).id for _ in range(3)]
    newest = [job.id for job in server.client.videos.list(limit=1)]
    assert newest == jobs[:0:-1]  # the client asks for page after page
    assert [job.id for job in server.client.videos.list(order="asc").data] == jobs[1:]
    with pytest.raises(openai.NotFoundError, match="expired"):
        server.client.videos.retrieve(jobs[0])


def test_a_deleted_video_is_gone_and_its_work_stops(server: Server) -> None:
    done = completed(server)
    file = server.service.videos.find(done.id).file
    assert file is not None and file.exists()
    assert server.client.videos.delete(done.id).deleted and not file.exists()
    pipe = server.pipe
    pipe.let_go_on.clear()
    pipe.in_pass.clear()
    first, second, passes = create(server), create(server), pipe.passes
    assert pipe.in_pass.wait(60)
    for job in (first, second):
        assert server.client.videos.delete(job.id).object == "video.deleted"
    pipe.let_go_on.set()
    until(lambda: server.service.worker.idle and not server.service.videos.unfinished)
    assert pipe.passes <= passes + 2 and not server.client.videos.list().data


@pytest.mark.parametrize("begun", [False, True])
def test_a_download_is_whole_or_404_whenever_the_video_is_deleted(
    server: Server, begun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = completed(server)
    videos = server.service.videos
    found = videos.find(job.id)
    assert found.file is not None
    whole = found.file.read_bytes()
    make, send = FileResponse.__init__, FileResponse.__call__

    def make_and_delete(self: FileResponse, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        videos.remove(found)

    async def delete_and_send(self: FileResponse, *arguments: Any) -> None:
        videos.remove(found)
        await send(self, *arguments)

    monkeypatch.setattr(FileResponse, *(("__call__", delete_and_send) if begun else ("__init__", make_and_delete)))
    status, _, body = server.fetch(f"/v1/videos/{job.id}/content")
    assert (status, body) == (200, whole) if begun else (status, b"video_not_found" in body) == (404, True)
    file = found.file
    until(lambda: not file.exists())
    assert server.fetch(f"/v1/videos/{job.id}/content")[0] == 404


def test_a_video_begins_with_the_image_that_was_sent(server: Server) -> None:
    url = "data:image/png;base64," + base64.b64encode(photo()).decode()
    for given in (("photo.png", photo(), "image/png"), {"image_url": url}):
        assert completed(server, input_reference=given).size == "48x32"
    assert all(prompts == [PROMPT] for prompts in server.pipe.prompts)


@pytest.mark.parametrize(
    "given, said",
    [
        (("x.png", b"no picture", "image/png"), "is not an image"),
        (("x.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), "is not an image"),
        ({"image_url": "file:///etc/passwd"}, "nothing else is read"),
        ({"image_url": "https://example.org/x.png"}, "nothing else is read"),
        ({"file_id": "file-1"}, "nothing else is read"),
        ({"image_url": "data:image/png;base64,%%%"}, "is not base64"),
    ],
)
def test_an_image_is_data_and_never_a_place(server: Server, given: Any, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        create(server, input_reference=given)
    assert server.pipe.prompts == []


@pytest.mark.parametrize(
    "own, said",
    [
        ({"seconds": "0"}, "seconds=0: a still image; send its prompt to /v1/images/generations"),
        ({"seconds": "-1"}, "seconds=-1"),
        ({"seconds": "61"}, "at most 60"),
        ({"seconds": "long"}, "seconds='long'"),
        ({"size": "1x1"}, "no such size"),
        ({"extra_body": {"frames": 3}}, "not a field"),
    ],
)
def test_wrong_fields_are_refused(server: Server, own: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        server.client.videos.create(prompt=PROMPT, **own)


@pytest.mark.parametrize("path", ["x", "..%2f..%2fetc%2fpasswd", "video_" + "0" * 32])
def test_there_is_no_other_video(server: Server, path: str) -> None:
    for method, tail in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
        status, _, body = server.fetch(f"/v1/videos/{path}{tail}", method=method)
        assert status == 404 and json.loads(body)["error"]


def test_a_video_model_draws_images_too(server: Server) -> None:
    answer = server.client.images.generate(prompt=PROMPT, extra_body={"seed": 1})
    assert answer.size == "48x32" and picture(answer.data[0]).size == (48, 32)


def test_the_end_leaves_time_to_download(star: HeldPipeline) -> None:
    with running(lambda: star.prepare(), drain_seconds=60.0) as server:
        job = completed(server)
        folder = server.service.videos.find(job.id).file.parent  # type: ignore[union-attr]
        server.service.drain()
        assert not server.service.finished
        assert server.client.videos.download_content(job.id).content
        until(lambda: server.service.finished)
    assert not folder.exists()
