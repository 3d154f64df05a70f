"""Videos, read: of which frames, at which rate, how turned, and what is refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stepvar.errors import UsageError
from stepvar.media import video_reading
from stepvar.media.video import Video
from tests.media.videos import error, make_video


@pytest.mark.parametrize(
    ("fps", "expected"), [(8, [0, 2, 4, 6, 8]), (32, [i // 2 for i in range(18)]), (None, [*range(9)])]
)
def test_another_rate_repeats_or_drops_frames(tmp_path: Path, fps: float | None, expected: list[int]) -> None:
    video = make_video()
    found = Video.read(video.save(tmp_path / "boat.mp4"), fps=fps)
    seen = [
        int(np.argmin([error(Video(frame[None]), Video(own[None])) for own in video.frames])) for frame in found.frames
    ]
    assert seen == expected and found.fps == (fps or 16)


def test_first_frames_only(tmp_path: Path) -> None:
    video = make_video()
    for name in ("boat.mp4", "boat"):
        path = video.save(tmp_path / name)
        assert len(Video.read(path, frames=5)) == 5
        with pytest.raises(UsageError, match="has 9 frames at 16 per second, 17 are needed"):
            Video.read(path, frames=17)


def test_videos_that_lie_on_their_side_are_turned(tmp_path: Path) -> None:
    """Telephones write frames as the sensor sees them, and how to turn them into the header of the track."""
    video = make_video()
    path = video.save(tmp_path / "boat.mp4")
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    quarter = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # clockwise
    data[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in quarter)
    path.write_bytes(data)
    found = Video.read(path)
    assert error(found, Video(np.rot90(video.frames, -1, axes=(1, 2)))) < 4


def write_with_matrix(video: Video, path: Path, matrix: tuple[int, ...]) -> Path:
    """An MP4 whose header says where pixels go: x' = a x + c y, y' = b x + d y."""
    data = bytearray(video.save(path).read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    place = data.index(b"tkhd") + 4 + 40
    data[place : place + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in (a, b, 0, c, d, 0, 0, 0, 1 << 30))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("matrix", "seen"),
    [
        ((-1, 0, 0, 1), lambda frames: frames[:, :, ::-1]),
        ((1, 0, 0, -1), lambda frames: frames[:, ::-1]),
        ((-1, 0, 0, -1), lambda frames: frames[:, ::-1, ::-1]),
        ((0, 1, 1, 0), lambda frames: frames.swapaxes(1, 2)),
        ((0, -1, 1, 0), lambda frames: np.rot90(frames, 1, axes=(1, 2))),
    ],
    ids=("left and right", "up and down", "half a turn", "diagonal", "a quarter"),
)
def test_mirrored_videos_are_seen_as_they_are_meant(tmp_path: Path, matrix: tuple[int, ...], seen: Any) -> None:
    video = make_video()
    found = Video.read(write_with_matrix(video, tmp_path / "boat.mp4", matrix))
    assert error(found, Video(np.ascontiguousarray(seen(video.frames)))) < 4


def test_pixels_that_are_not_square_become_square(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "wide.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(make_video(1).frames[0])))
        container.mux(stream.encode(None))
    assert Video.read(tmp_path / "wide.mp4").size == (128, 48)


def test_names_with_a_time_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(Video.read(make_video().save("12:30.mp4"))) == 9


def test_a_stream_whose_size_changes_is_refused(tmp_path: Path) -> None:
    import av

    parts = []
    for width in (64, 96):
        with av.open(str(tmp_path / "part.ts"), "w", format="mpegts") as container:
            stream = container.add_stream("libx264", rate=16)
            stream.width, stream.height, stream.pix_fmt = width, 48, "yuv420p"
            for _ in range(8):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, width, 3), np.uint8))))
            container.mux(stream.encode(None))
        parts.append((tmp_path / "part.ts").read_bytes())
    (tmp_path / "both.ts").write_bytes(b"".join(parts))
    with pytest.raises(UsageError, match="its images have different sizes"):
        Video.read(tmp_path / "both.ts")


def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (1, 2, 10, 11):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"shot{number}.png")
    assert Video.read(tmp_path).frames[:, 0, 0, 0].tolist() == [1, 2, 10, 11]


def test_files_that_are_no_video(tmp_path: Path) -> None:
    (tmp_path / "boat.mp4").write_bytes(b"not a video at all" * 100)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "frame_0.png").write_bytes(b"no image")
    cases = {
        "missing.mp4": "no such file",
        "boat.mp4": "cannot be read as a video",
        "empty": "holds no .png",
        "bad": "frame_0.png: is not an image",
    }
    for name, message in cases.items():
        with pytest.raises(UsageError, match=message):
            Video.read(tmp_path / name)
    with pytest.raises(UsageError, match="fps=0: must be"):
        Video.read(tmp_path / "boat.mp4", fps=0)


@pytest.mark.parametrize("text", ["1e99999999", "1/1e-99999999", "nan", "1e9", "-16", "9" * 100_000, "16/0", "a"])
def test_a_frame_that_states_no_rate_of_a_video_is_passed_over(tmp_path: Path, text: str) -> None:
    info = PngInfo()
    info.add_text("fps", text)
    Image.new("RGB", (4, 3)).save(tmp_path / "frame_0.png", pnginfo=info)
    assert Video.read(tmp_path).fps == 16 and Video.read(tmp_path, fps=24).fps == 24


@pytest.mark.parametrize("frames", [0, 2.5, float("nan"), True, "3"], ids=str)
def test_a_number_of_frames_is_a_whole_number(tmp_path: Path, frames: Any) -> None:
    with pytest.raises(UsageError, match=r"frames=.*: must be a whole number of at least 1"):
        Video.read(make_video().save(tmp_path / "boat.gif"), frames=frames)


def test_gaps_between_times_are_bounded_before_they_are_filled() -> None:
    pixels = np.zeros((2, 4, 3), np.uint8)
    day = [video_reading.Shown(pixels, 0.0), video_reading.Shown(pixels, 72_000.0)]
    with pytest.raises(UsageError, match=r"boat.mp4: gives more than 250,000 frames; ask for fewer with frames=, or a"):
        next(video_reading.at_rate(day, 16, 16, where="boat.mp4"))
    assert len(list(video_reading.at_rate(day, 16, 16, most=3))) == 3
    assert len(list(video_reading.at_rate(day, 16, 1))) == 72_001
    with pytest.raises(UsageError, match=r"video: gives more than 250,000 frames"):
        make_video(fps=0.001).at_rate(1000)


def test_gaps_between_large_frames_are_bounded_by_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_reading, "MOST_FRAMES", 100 * make_video().frames[0].nbytes)
    assert len(make_video(fps=16).at_rate(160)) == 90
    with pytest.raises(UsageError, match="GB of frames; ask for fewer"):
        make_video(fps=16).at_rate(192)


def test_names_that_are_too_long_are_refused() -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        Video.read("x" * 5000)
