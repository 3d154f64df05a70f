"""The formats of video files: MP4 through PyAV, animated GIF, folders of pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from stepvar.errors import OutputError, UsageError
from stepvar.utils.files import atomic_folder, atomic_path, check_writable
from stepvar.utils.progress import bar

if TYPE_CHECKING:
    from stepvar.media.video import Frames, Video

ENCODERS = ("libx264", "libopenh264", "mpeg4")
"""Those of MP4, the first that PyAV was built with is taken: H.264 twice, then its predecessor."""

PIXELS = ("yuv420p", "yuv444p")
SUFFIXES = (".mp4", ".gif")
FPS = 16.0
"""Frames per second where nothing says otherwise: the rate of the InfinityStar models."""

GIF_MAX_FPS = 50.0
"""GIF counts in hundredths of a second, and players slow down what is shorter than two."""

_BT709 = 1


def check_video_path(path: Path) -> None:
    """Fails before the work if a video cannot be written there.

    Raises:
        UsageError: for an unknown ending, or an MP4 without PyAV.
        OutputError: if the place cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix == ".mp4":
        _encoder()
    elif suffix and suffix not in SUFFIXES:
        raise UsageError(f"{path}: videos end in .mp4 or .gif; a name without an ending is a folder of PNG files")
    if not suffix and path.exists():
        raise OutputError(f"{path}: exists; choose another folder or remove it first")
    check_writable(path)


def check_quality(quality: int) -> None:
    """Raises a UsageError for a quality that MP4 files cannot have."""
    if not 0 <= quality <= 100:
        raise UsageError(f"quality={quality}: must be from 0 (small) to 100 (large)")


def write_video(
    video: Video, path: Path, quality: int, pixels: str, metadata: dict[str, str], progress: bool = False
) -> None:
    """See :meth:`stepvar.media.video.Video.save`."""
    check_quality(quality)
    if pixels not in PIXELS:
        raise UsageError(f"pixels={pixels!r}: must be {' or '.join(PIXELS)}")
    check_video_path(path)
    with bar("frames", len(video), progress, time_left=True) as advance:
        if path.suffix.lower() == ".mp4":
            with atomic_path(path) as temporary, _errors_of_av(path):
                _write_mp4(video, temporary, quality, pixels, metadata, advance)
        elif path.suffix.lower() == ".gif":
            with atomic_path(path) as temporary:
                _write_gif(video, temporary, metadata, advance)
        else:
            with atomic_folder(path) as folder:
                _write_folder(video, folder, metadata, advance)


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise UsageError(
            "MP4 needs PyAV, which is not installed; pip install 'stepvar[video]', or save as .gif or to a folder"
        ) from None
    return av


def _encoder() -> str:
    """The best encoder of MP4 that there is."""
    av = _av()
    for name in ENCODERS:
        try:
            av.Codec(name, "w")
        except ValueError:  # PyAV's error for an unknown codec is one
            continue
        return name
    raise UsageError("MP4: this PyAV was built without an encoder for it; save as .gif or to a folder")


@contextmanager
def _errors_of_av(path: Path) -> Iterator[None]:
    try:
        yield
    except _av().FFmpegError as error:
        raise OutputError(f"{path}: {error.strerror}; free space or choose another place") from error


def _write_mp4(video: Video, path: Path, quality: int, pixels: str, metadata: dict[str, str], advance: Any) -> None:
    av, name = _av(), _encoder()
    frames = _even(video.frames) if pixels == "yuv420p" else video.frames
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        if metadata:
            container.metadata["comment"] = json.dumps(metadata)
        stream = container.add_stream(name, rate=video.rate, options=_options(name, quality))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        # Files that do not say it are guessed at by their size.
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = 1  # "limited", as everywhere in video
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture = picture.reformat(format=pixels, dst_colorspace="ITU709", dst_color_range="MPEG")
            container.mux(stream.encode(picture))
            advance()
        container.mux(stream.encode(None))


def _options(encoder: str, quality: int) -> dict[str, str]:
    if encoder == "libx264":
        # 0 would be without loss, in a profile that few players know.
        return {"crf": str(max(1, round(51 * (1 - quality / 100))))}
    if encoder == "mpeg4":
        scale = str(round(1 + 30 * (1 - quality / 100) ** 2))  # its steps are wider than those of H.264
        return {"qmin": scale, "qmax": scale}
    return {"qmin": "1", "qmax": str(max(1, round(51 * (1 - quality / 100))))}


def _even(frames: Frames) -> Frames:
    """Frames with the last row and column repeated where their number is odd."""
    _, height, width, _ = frames.shape
    if height % 2 == 0 and width % 2 == 0:
        return frames
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _write_gif(video: Video, path: Path, metadata: dict[str, str], advance: Any) -> None:
    if video.fps > GIF_MAX_FPS:
        raise UsageError(f"fps={video.fps}: a GIF shows at most {GIF_MAX_FPS:g} frames per second; save as .mp4")

    # One palette for all frames: with one for each, what stands still would flicker.
    some = video.frames[:: max(1, len(video) // 16)]
    palette = Image.fromarray(np.concatenate(list(some))).quantize(256)

    def pictures() -> Iterator[Image.Image]:
        for image in video.images():
            yield image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
            advance()

    # Rounded so that no time is lost over the whole video: at 16 frames per second 6, 7, 6, 6, ... hundredths.
    ends = [round(100 * (index + 1) / video.fps) for index in range(len(video))]
    lengths = [10 * (end - begin) for begin, end in pairwise([0, *ends])]
    first, *others = pictures()
    comment = json.dumps(metadata).encode() if metadata else b""
    first.save(
        path, format="GIF", save_all=True, append_images=others, duration=lengths, loop=0, disposal=1, comment=comment
    )


def _write_folder(video: Video, folder: Path, metadata: dict[str, str], advance: Any) -> None:
    info = PngInfo()
    for key, value in {"fps": str(video.rate), **metadata}.items():
        info.add_text(key, value)
    digits = max(4, len(str(len(video) - 1)))
    for index, image in enumerate(video.images()):
        image.save(folder / f"frame_{index:0{digits}}.png", pnginfo=info)
        advance()


def read_frames(path: Path, fps: float | None, frames: int | None) -> tuple[Frames, float]:
    """See :meth:`stepvar.media.video.Video.read`: frames (F, H, W, 3) and their rate."""
    if fps is not None and not 0 < fps < float("inf"):
        raise UsageError(f"fps={fps}: must be a positive number of frames per second")
    if frames is not None and frames < 1:
        raise UsageError(f"frames={frames}: must be at least 1")
    if not path.exists():
        raise UsageError(f"{path}: there is no such file or folder; check the path")
    pictures, rate = _read_folder(path, fps, frames) if path.is_dir() else _read_file(path, fps, frames)
    if frames is not None and len(pictures) < frames:
        raise UsageError(f"{path}: has {len(pictures)} frames at {rate:g} per second, {frames} are needed")
    return np.stack(pictures), rate


def _read_folder(folder: Path, fps: float | None, frames: int | None) -> tuple[list[Frames], float]:
    paths = sorted(folder.glob("*.png"))[:frames]
    if not paths:
        raise UsageError(f"{folder}: holds no .png files; name a folder of frames, or a video file")
    pictures, rate = [], fps or FPS
    for index, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                if index == 0 and "fps" in image.info:
                    rate = float(Fraction(image.info["fps"]))
                pictures.append(np.asarray(image.convert("RGB")))
        except (UnidentifiedImageError, OSError, ValueError, ZeroDivisionError) as error:
            raise UsageError(f"{path}: cannot be read as a frame ({error}); remove it, or write it again") from None
    if len({picture.shape for picture in pictures}) > 1:
        raise UsageError(f"{folder}: its pictures have different sizes; a video needs pictures of one size")
    return pictures, rate


def _read_file(path: Path, fps: float | None, frames: int | None) -> tuple[list[Frames], float]:
    av = _av()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UsageError(f"{path}: holds no video; give a video file")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = float(stream.average_rate or stream.guessed_rate or FPS)
            shown = ((frame.time, frame) for frame in container.decode(stream))
            pictures = [_picture(frame) for frame in islice(_at_rate(shown, rate, fps), frames)]
    except av.FFmpegError as error:
        raise UsageError(f"{path}: cannot be read as a video ({error.strerror}); give a video file") from None
    if not pictures:
        raise UsageError(f"{path}: holds no frames; give a video file")
    return pictures, fps or rate


def _picture(frame: Any) -> Frames:
    """A decoded frame as (H, W, 3), turned upright where the file says that it lies on its side."""
    picture: Frames = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90)
    return np.rot90(picture, turns) if turns % 4 else picture


def _at_rate(shown: Iterable[tuple[float | None, Any]], rate: float, fps: float | None) -> Iterator[Any]:
    """Of frames with the times (in seconds) at which they appear, those seen at multiples of ``1 / fps``.

    Args:
        rate: of the frames, for how long the last one is seen.
        fps: None: every frame is taken once.
    """
    count, start, end = 0, 0.0, 0.0
    held: Any = None
    for index, (time, frame) in enumerate(shown):
        if fps is None:
            yield frame
            continue
        now = index / rate if time is None else time
        if held is None:
            start = now
        # What was seen until now. Times are rounded in files, so a frame counts from a hair before its time.
        while held is not None and count / fps < now - start - 1e-3:
            yield held
            count += 1
        held, end = frame, now + 1 / rate
    while fps is not None and held is not None and count / fps < end - start - 1e-3:
        yield held
        count += 1
