"""The formats of video files: MP4 through PyAV, animated GIF, folders of images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stepvar.errors import OutputError, UsageError
from stepvar.media.sheets import png_info
from stepvar.utils.files import atomic_folder, atomic_path, check_writable
from stepvar.utils.progress import bar

Frames = NDArray[np.uint8]

ENCODERS = ("libx264", "libopenh264", "mpeg4")
"""Those of MP4, the first that PyAV was built with is taken: H.264 twice, then its predecessor."""

PIXELS = ("yuv420p", "yuv444p")
FPS = 16.0
"""Frames per second where nothing says otherwise: the rate of the InfinityStar models."""

GIF_MAX_FPS = 50.0
"""GIF counts in hundredths of a second, and players slow down what is shorter than two."""


def check_video_path(path: Path) -> None:
    """Fails before the work if a video cannot be written there.

    Raises:
        UsageError: for an unknown ending, or an MP4 without PyAV.
        OutputError: if the place cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix == ".mp4":
        _encoder()
    elif suffix not in (".gif", ""):
        raise UsageError(f"{path}: videos end in .mp4 or .gif; a name without an ending is a folder of PNG files")
    if not suffix and path.exists():
        raise OutputError(f"{path}: exists; choose another folder or remove it first")
    check_writable(path)


def check_quality(quality: int) -> None:
    """Raises a UsageError for a quality that MP4 files cannot have."""
    if not 0 <= quality <= 100:
        raise UsageError(f"quality={quality}: must be from 0 (small) to 100 (large)")


def write_video(
    frames: Frames, fps: float, path: Path, quality: int, pixels: str, metadata: Mapping[str, str], progress: bool
) -> None:
    """See :meth:`stepvar.media.video.Video.save`; frames (F, H, W, 3)."""
    check_quality(quality)
    if pixels not in PIXELS:
        raise UsageError(f"pixels={pixels!r}: must be {' or '.join(PIXELS)}")
    check_video_path(path)
    suffix = path.suffix.lower()
    place = atomic_path(path) if suffix else atomic_folder(path)
    with bar("frames", len(frames), progress, time_left=True) as advance, place as temporary:
        if suffix == ".mp4":
            _write_mp4(frames, fps, temporary, quality, pixels, metadata, advance)
        elif suffix == ".gif":
            _write_gif(frames, fps, temporary, metadata, advance)
        else:
            _write_folder(frames, fps, temporary, metadata, advance)


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
    built = [name for name in ENCODERS if name in _av().codecs_available]
    if not built:
        raise UsageError("MP4: this PyAV was built without an encoder for it; save as .gif or to a folder")
    return built[0]


def _write_mp4(
    frames: Frames,
    fps: float,
    path: Path,
    quality: int,
    pixels: str,
    metadata: Mapping[str, str],
    advance: Callable[[], None],
) -> None:
    av, name = _av(), _encoder()
    height, width = frames.shape[1:3]
    if pixels == "yuv420p" and (height % 2 or width % 2):  # needs even sides
        frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    try:
        with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            if metadata:
                container.metadata["comment"] = json.dumps(dict(metadata))
            stream = container.add_stream(name, rate=_fraction(fps), options=_options(name, quality))
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = pixels
            # Files that do not say it are guessed at by their size.
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
            context.color_range = 1  # "limited", as everywhere in video
            for frame in frames:
                image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                image = image.reformat(format=pixels, dst_colorspace="ITU709", dst_color_range="MPEG")
                container.mux(stream.encode(image))
                advance()
            container.mux(stream.encode(None))
    except av.FFmpegError as error:  # not an OSError, though it is one of the file
        raise OSError(error.errno, error.strerror) from error


def _options(encoder: str, quality: int) -> dict[str, str]:
    if encoder == "mpeg4":
        scale = str(round(1 + 30 * (1 - quality / 100) ** 2))  # its steps are wider than those of H.264
        return {"qmin": scale, "qmax": scale}
    factor = str(max(1, round(51 * (1 - quality / 100))))  # 0 would be without loss, in a profile that few players know
    return {"crf": factor} if encoder == "libx264" else {"qmin": "1", "qmax": factor}


def _fraction(fps: float) -> Fraction:
    """A rate as the fraction that files state, such as 30000/1001."""
    return Fraction(fps).limit_denominator(1001)


def _write_gif(
    frames: Frames, fps: float, path: Path, metadata: Mapping[str, str], advance: Callable[[], None]
) -> None:
    if fps > GIF_MAX_FPS:
        raise UsageError(f"fps={fps}: a GIF shows at most {GIF_MAX_FPS:g} frames per second; save as .mp4")

    # One palette for all frames: with one for each, what stands still would flicker.
    some = frames[:: max(1, len(frames) // 16)]
    palette = Image.fromarray(np.concatenate(list(some))).quantize(256)

    def images() -> Iterator[Image.Image]:
        for frame in frames:
            yield Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
            advance()

    # Rounded so that no time is lost over the whole video: at 16 frames per second 6, 7, 6, 6, ... hundredths.
    ends = [round(100 * (index + 1) / fps) for index in range(len(frames))]
    lengths = [10 * (end - begin) for begin, end in pairwise([0, *ends])]
    first, *others = images()
    comment = json.dumps(dict(metadata)).encode() if metadata else b""
    first.save(
        path, format="GIF", save_all=True, append_images=others, duration=lengths, loop=0, disposal=1, comment=comment
    )


def _write_folder(
    frames: Frames, fps: float, folder: Path, metadata: Mapping[str, str], advance: Callable[[], None]
) -> None:
    info = png_info({"fps": str(_fraction(fps)), **metadata})
    digits = max(4, len(str(len(frames) - 1)))
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame_{index:0{digits}}.png", pnginfo=info)
        advance()


def read_frames(path: Path, fps: float | None, frames: int | None) -> tuple[Frames, float]:
    """See :meth:`stepvar.media.video.Video.read`: frames (F, H, W, 3) and their rate."""
    if fps is not None and not 0 < fps < float("inf"):
        raise UsageError(f"fps={fps}: must be a positive number of frames per second")
    if frames is not None and frames < 1:
        raise UsageError(f"frames={frames}: must be at least 1")
    if not path.exists():
        raise UsageError(f"{path}: there is no such file or folder; check the path")
    found, rate = (_read_folder if path.is_dir() else _read_file)(path, fps, frames)
    if frames is not None and len(found) < frames:
        raise UsageError(f"{path}: has {len(found)} frames at {rate:g} per second, {frames} are needed")
    return np.stack(found), rate


def _read_folder(folder: Path, fps: float | None, frames: int | None) -> tuple[list[Frames], float]:
    paths = sorted(folder.glob("*.png"))[:frames]
    if not paths:
        raise UsageError(f"{folder}: holds no .png files; name a folder of frames, or a video file")
    found, rate = [], fps or FPS
    for index, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                if index == 0 and "fps" in image.info:
                    rate = float(Fraction(image.info["fps"]))
                found.append(np.asarray(image.convert("RGB")))
        except (OSError, ValueError, ZeroDivisionError) as error:
            raise UsageError(f"{path}: cannot be read as a frame ({error}); remove it, or write it again") from None
    if len({frame.shape for frame in found}) > 1:
        raise UsageError(f"{folder}: its images have different sizes; a video needs images of one size")
    return found, rate


def _read_file(path: Path, fps: float | None, frames: int | None) -> tuple[list[Frames], float]:
    av = _av()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UsageError(f"{path}: holds no video; give a video file")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = float(stream.average_rate or stream.guessed_rate or FPS)
            decoded = container.decode(stream)
            chosen = decoded if fps is None else _at_rate(decoded, rate, fps)
            found = [_upright(frame) for frame in islice(chosen, frames)]
    except av.FFmpegError as error:
        raise UsageError(f"{path}: cannot be read as a video ({error.strerror}); give a video file") from None
    if not found:
        raise UsageError(f"{path}: holds no frames; give a video file")
    return found, fps or rate


def _upright(frame: Any) -> Frames:
    """A decoded frame as (H, W, 3), turned where the file says that it lies on its side."""
    image: Frames = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90)
    return np.rot90(image, turns) if turns % 4 else image


def _at_rate(frames: Iterable[Any], rate: float, fps: float) -> Iterator[Any]:
    """Of frames with the times at which they appear, those seen at multiples of ``1 / fps``.

    Args:
        rate: of the frames, for those without a time, and for how long the last one is seen.
    """

    def timed() -> Iterator[tuple[float, Any]]:
        now = 0.0
        for index, frame in enumerate(frames):
            now = index / rate if frame.time is None else frame.time
            yield now, frame
        yield now + 1 / rate, None

    count, start = 0, None
    for (now, frame), (until, _) in pairwise(timed()):
        start = now if start is None else start
        # Times are rounded in files, so a frame counts from a hair before its time.
        while count / fps < until - start - 1e-3:
            yield frame
            count += 1
