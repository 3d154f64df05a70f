"""Videos: written, read back, refused."""

from __future__ import annotations

import json
import resource
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stepvar.errors import OutputError, UsageError
from stepvar.media import video_files
from stepvar.media.video import Video
from tests.media.videos import error, make_video


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("fps", [16, 29.97, 8])
def test_mp4_gives_back_frames_and_rate(tmp_path: Path, fps: float) -> None:
    video = make_video(fps=fps)
    found = Video.read(video.save(tmp_path / "boat.mp4"))
    assert found.frames.shape == video.frames.shape and found.fps == pytest.approx(fps, rel=1e-4)
    assert error(video, found) < 4
    # Where the square is: no frame is missing, late or in another place.
    for index in range(len(video)):
        assert (found.frames[index, 18, 6 + 2 * index : 18 + 2 * index, 0] > 200).all()
    assert [path.name for path in tmp_path.iterdir()] == ["boat.mp4"]


def test_mp4_keeps_colours(tmp_path: Path) -> None:
    """Red, green, blue, white, black and grey of one colour each: what is written is tagged, so it is read alike."""
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (255, 255, 255), (0, 0, 0), (128, 128, 128)]
    frames = np.stack([np.full((32, 32, 3), colour, np.uint8) for colour in colours])
    found = Video.read(Video(frames).save(tmp_path / "colours.mp4", quality=95))
    assert np.abs(found.frames.astype(int) - frames.astype(int)).max() <= 4


def test_quality_costs_space(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    video = Video(noise)
    sizes, errors = [], []
    for quality in (10, 60, 100):
        path = video.save(tmp_path / f"{quality}.mp4", quality=quality, pixels="yuv444p")
        sizes.append(path.stat().st_size)
        errors.append(error(video, Video.read(path)))
    assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True) and errors[-1] < 3


@pytest.mark.parametrize(("height", "width"), [(47, 64), (48, 63), (47, 63)])
def test_odd_sides_are_filled_up(tmp_path: Path, height: int, width: int) -> None:
    video = make_video(height=height, width=width)
    found = Video.read(video.save(tmp_path / "odd.mp4"))
    assert found.frames.shape[1:3] == (48, 64)
    assert error(video, Video(found.frames[:, :height, :width])) < 4
    assert error(Video(found.frames[:, -1:, :]), Video(found.frames[:, -2:-1, :])) < 4
    exact = Video.read(video.save(tmp_path / "exact.mp4", pixels="yuv444p"))
    assert exact.frames.shape == video.frames.shape and error(video, exact) < 4


def test_one_frame_makes_a_video(tmp_path: Path) -> None:
    for name in ("one.mp4", "one.gif", "one"):
        assert len(Video.read(make_video(1).save(tmp_path / name))) == 1


def test_without_h264_an_older_encoder_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_files, "ENCODERS", ("no such encoder", "mpeg4"))
    video = make_video()
    found = Video.read(video.save(tmp_path / "old.mp4"))
    assert found.frames.shape == video.frames.shape and error(video, found) < 8
    monkeypatch.setattr(video_files, "ENCODERS", ("no such encoder",))
    with pytest.raises(UsageError, match="without an encoder"):
        video.save(tmp_path / "none.mp4")


def test_gif_gives_back_frames_and_time(tmp_path: Path) -> None:
    video = make_video(22)
    path = video.save(tmp_path / "boat.gif", metadata={"prompt": "a boat"})
    with Image.open(path) as image:
        lengths = []
        for index in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(index)
            lengths.append(image.info["duration"])
        assert json.loads(image.info["comment"]) == {"prompt": "a boat"}
    assert set(lengths) == {60, 70} and abs(sum(lengths) - 1000 * video.seconds) <= 5
    found = Video.read(path, fps=16)
    assert found.frames.shape == video.frames.shape and error(video, found) < 10


def test_still_parts_of_a_gif_stand_still(tmp_path: Path) -> None:
    frames = Video.read(make_video().save(tmp_path / "boat.gif")).frames
    assert (frames[:, 40:] == frames[:1, 40:]).mean() > 0.9


def test_folder_gives_back_every_byte(tmp_path: Path) -> None:
    video = make_video(fps=24)
    path = video.save(tmp_path / "frames", metadata={"prompt": "a boat"})
    assert sorted(p.name for p in path.iterdir())[:2] == ["frame_0000.png", "frame_0001.png"]
    found = Video.read(path)
    assert np.array_equal(found.frames, video.frames) and found.fps == 24
    with Image.open(path / "frame_0003.png") as image:
        assert image.info["prompt"] == "a boat"


def test_metadata_of_mp4(tmp_path: Path) -> None:
    import av

    path = make_video().save(tmp_path / "boat.mp4", metadata={"prompt": "a boat", "seed": "7"})
    with av.open(str(path)) as container:
        assert json.loads(container.metadata["comment"]) == {"prompt": "a boat", "seed": "7", "quality": "65"}
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.pix_fmt == "yuv420p"
        assert stream.codec_context.colorspace == 1


def test_a_video_can_be_brought_to_another_rate() -> None:
    video = make_video(fps=32)
    halved = video.at_rate(16)
    assert np.array_equal(halved.frames, video.frames[::2]) and halved.fps == 16 and video.at_rate(32) is video


def test_a_gif_of_frames_that_last_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at most 655 seconds"):
        make_video(fps=0.001).save(tmp_path / "slow.gif")


def test_between_tensors_images_and_frames() -> None:
    video = make_video()
    pixels = video.tensor()
    assert pixels.shape == (3, 9, 48, 64) and pixels.min() >= -1 and pixels.max() <= 1
    assert np.array_equal(Video.of(pixels).frames, video.frames)
    assert np.array_equal(Video.of_images(video.images(), 16).frames, video.frames)
    assert Video.of(torch.full((3, 1, 2, 2), 7.0)).frames.max() == 255
    assert repr(video) == "Video(9 frames of 64x48, 16 fps)"
    assert video.size == (64, 48) and len(video) == 9 and video.seconds == 9 / 16


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    noise = Video(np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8))
    for name in ("boat.mp4", "boat.gif", "boat"):
        with disk_of(5000), pytest.raises(OutputError, match=f"{name}: .*free space or choose another place"):
            noise.save(tmp_path / name)
        assert list(tmp_path.iterdir()) == []


def test_a_video_that_is_there_survives_a_failure(tmp_path: Path) -> None:
    path = make_video().save(tmp_path / "boat.mp4")
    before = path.read_bytes()
    noise = Video(np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8))
    with disk_of(5000), pytest.raises(OutputError):
        noise.save(path)
    assert path.read_bytes() == before


def test_without_pyav_only_mp4_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match=r"pip install '\.\[video\]'"):
        make_video().save(tmp_path / "boat.mp4")
    make_video().save(tmp_path / "boat.gif")
    assert len(Video.read(make_video().save(tmp_path / "boat"))) == 9
    assert len(Video.read(tmp_path / "boat.gif")) == 9
    other = tmp_path / "boat.webm"
    other.touch()
    with pytest.raises(UsageError, match="PyAV"):
        Video.read(other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "boat.avi"}, "end in .mp4 or .gif"),
        ({"quality": 101}, "quality=101: must be a whole number from 0 to 100"),
        ({"quality": "95"}, "quality='95': must be a whole number"),
        ({"quality": None}, "quality=None: must be a whole number"),
        ({"quality": [1]}, r"quality=\[1\]: must be a whole number"),
        ({"quality": True}, "quality=True: must be a whole number"),
        ({"pixels": "rgb24"}, "pixels='rgb24': must be yuv420p or yuv444p"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    path = tmp_path / settings.pop("path", "boat.mp4")
    with pytest.raises(UsageError, match=message):
        make_video().save(path, **settings)
    assert list(tmp_path.iterdir()) == []


def test_gif_of_too_many_frames_per_second(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fps=60: a GIF shows at most 50"):
        make_video(fps=60).save(tmp_path / "boat.gif")


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    for name in ("missing/boat.mp4", "missing/boat.gif", "missing/boat"):
        with pytest.raises(OutputError, match="does not exist; create it first"):
            make_video().save(tmp_path / name)
    (tmp_path / "boat").mkdir()
    with pytest.raises(OutputError, match="exists; choose another folder"):
        make_video().save(tmp_path / "boat")


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 4, 5, 4), (0, 4, 5, 3)], ids=str)
def test_frames_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="must be"):
        Video(np.zeros(shape, np.uint8))


def test_frames_of_several_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="sizes 4x3, 5x3"):
        Video.of_images([Image.new("RGB", (4, 3)), Image.new("RGB", (5, 3))])
    with pytest.raises(UsageError, match=r"fps=0"):
        Video(np.zeros((1, 2, 2, 3), np.uint8), 0)


@pytest.mark.parametrize("fps", [0, -1, 1e9, 1e-9, True, float("nan"), float("inf"), "16", None], ids=str)
def test_rates_that_no_video_has_are_refused(tmp_path: Path, fps: Any) -> None:
    video = make_video()
    path = video.save(tmp_path / "boat")
    with pytest.raises(UsageError, match=r"fps=.*: must be a number from 0.001 to 1000"):
        make_video(fps=fps)
    with pytest.raises(UsageError, match=r"fps=.*: must be a number from 0.001 to 1000"):
        video.at_rate(fps)
    if fps is not None:  # to read at the file's own
        with pytest.raises(UsageError, match=r"fps=.*: must be a number from 0.001 to 1000"):
            Video.read(path, fps=fps)


def test_rates_and_numbers_of_numpy_serve(tmp_path: Path) -> None:
    video = make_video(fps=np.float32(8))  # type: ignore[arg-type]
    assert type(video.fps) is float and video.at_rate(np.int64(16)).fps == 16  # type: ignore[arg-type]
    path = video.save(tmp_path / "boat.mp4", quality=np.int64(70))  # type: ignore[arg-type]
    assert len(Video.read(path, frames=np.int64(3))) == 3  # type: ignore[arg-type]


def test_what_is_no_array_and_no_image_is_refused() -> None:
    for frames in (None, [make_video().frames[0]]):
        with pytest.raises(UsageError, match=r"frames=.*: must be an array \(F, H, W, 3\)"):
            Video(frames)  # type: ignore[arg-type]
    for images in ([None], None, [Image.new("RGB", (4, 3)), "boat.png"]):
        with pytest.raises(UsageError, match=r"images: .* is no image"):
            Video.of_images(images)  # type: ignore[arg-type]


def test_a_gif_wider_than_the_format_holds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="70000x8 as GIF: a side has at most 65535 pixels; save to a folder"):
        Video(np.zeros((2, 8, 70_000, 3), np.uint8)).save(tmp_path / "wide.gif")
    assert list(tmp_path.iterdir()) == []


def test_frames_that_cannot_be_written_to_give_no_warning() -> None:
    frames = np.zeros((1, 4, 4, 3), np.uint8)
    frames.setflags(write=False)
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert Video(frames).tensor().shape == (3, 1, 4, 4)
    finally:
        torch.set_warn_always(before)
