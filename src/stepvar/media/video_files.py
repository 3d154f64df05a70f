"""Writing videos: MP4 through PyAV, animated GIF, folders of images."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stepvar.core.values import Range, number
from stepvar.errors import OutputError, UsageError
from stepvar.media.images import check_quality, check_size, save_parameters
from stepvar.utils.files import atomic_folder, atomic_path, check_writable, is_stream
from stepvar.utils.progress import bar

Frames = NDArray[np.uint8]

ENCODERS = ("libx264", "libopenh264", "mpeg4")
"""Those of MP4, the first that PyAV was built with is taken: H.264 twice, then its predecessor."""

PIXELS = ("yuv420p", "yuv444p")
FPS = 16.0
"""Frames per second where nothing says otherwise: the rate of the InfinityStar models."""

RATES = Range(0.001, 1000, note="frames per second")
"""Of any video: from slides that are shown for minutes to the frames of high-speed cameras."""

GIF_MAX_FPS = 50.0
"""GIF counts in hundredths of a second, and players slow down what is shorter than two."""

GIF_LONGEST = 655.0
"""Seconds that one frame of a GIF can be shown."""


def check_video_path(path: Path) -> None:
    """Fails before the work if a video cannot be written there.

    Raises:
        UsageError: for an unknown ending, or an MP4 without PyAV.
        OutputError: if the place cannot be written.
    """
    check_video_suffix(path)
    if not path.suffix and os.path.lexists(path) and not is_stream(path):
        raise OutputError(f"{path}: exists; choose another folder or remove it first")
    check_writable(path)


def check_video_suffix(path: Path) -> None:
    """Raises a UsageError for an unknown ending, or an MP4 without PyAV."""
    suffix = path.suffix.lower()
    if suffix == ".mp4":
        _encoder()
    elif suffix not in (".gif", ""):
        raise UsageError(f"{path}: videos end in .mp4 or .gif; a name without an ending is a folder of PNG files")


def check_rate(fps: Any) -> float:
    """Frames per second as a number of Python; a UsageError for what no video has."""
    return number("fps", fps, RATES)


def write_video(
    frames: Frames, fps: float, path: Path, quality: int, pixels: str, metadata: Mapping[str, str], progress: bool
) -> None:
    """See :meth:`stepvar.media.video.Video.save`; frames (F, H, W, 3)."""
    quality = check_quality(quality)
    if pixels not in PIXELS:
        raise UsageError(f"pixels={pixels!r}: must be {' or '.join(PIXELS)}")
    check_video_path(path)
    suffix = ".gif" if is_stream(path) else path.suffix.lower()
    if suffix == ".gif":
        check_size((frames.shape[2], frames.shape[1]), "GIF", path, "save to a folder of PNG files")
    place = atomic_path(path) if suffix else atomic_folder(path)
    with bar("frames", len(frames), progress, time_left=True) as advance, place as temporary:
        if suffix == ".mp4":
            _write_mp4(frames, fps, temporary, quality, pixels, metadata, advance)
        elif suffix == ".gif":
            _write_gif(frames, fps, temporary, metadata, advance)
        else:
            _write_folder(frames, fps, temporary, metadata, advance)


def pyav() -> Any:
    """PyAV, which only MP4 needs; a UsageError where it is not installed."""
    try:
        import av
    except ImportError:
        raise UsageError(
            "MP4 needs PyAV, which is not installed; pip install '.[video]' in the checkout, or save as .gif"
        ) from None
    return av


def _encoder() -> str:
    """The best encoder of MP4 that there is."""
    built = [name for name in ENCODERS if name in pyav().codecs_available]
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
    av, name = pyav(), _encoder()
    height, width = frames.shape[1:3]
    if pixels == "yuv420p" and (height % 2 or width % 2):  # needs even sides
        frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    try:
        with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            if metadata:
                container.metadata["comment"] = json.dumps({**metadata, "quality": str(quality)})
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
    if fps * GIF_LONGEST < 1:
        raise UsageError(f"fps={fps}: a GIF shows a frame for at most {GIF_LONGEST:g} seconds; save as .mp4")

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
    texts = save_parameters("GIF", metadata)
    first.save(path, format="GIF", save_all=True, append_images=others, duration=lengths, loop=0, disposal=1, **texts)


def _write_folder(
    frames: Frames, fps: float, folder: Path, metadata: Mapping[str, str], advance: Callable[[], None]
) -> None:
    texts = save_parameters("PNG", {"fps": str(_fraction(fps)), **metadata})
    digits = max(4, len(str(len(frames) - 1)))
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame_{index:0{digits}}.png", **texts)
        advance()
