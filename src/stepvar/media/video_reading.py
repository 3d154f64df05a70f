"""Reading videos: whatever PyAV knows, animated GIF, folders of images."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from stepvar.core.values import Range, whole_number
from stepvar.errors import UsageError
from stepvar.media.images import FORMATS, as_rgb, opened, read_image
from stepvar.media.video_files import FPS, RATES, Frames, check_rate, pyav
from stepvar.utils.reading import check_regular

LONGEST_RATE = 40
"""Characters of a rate that a PNG states."""

MOST_FRAMES = 16_000_000_000
"""Bytes of the frames that are read of one file: an hour of what the models take."""

MOST_READ = 250_000
"""Frames that are read of one file, however small: an hour at 60 per second, and a little more."""


def read_frames(path: Path, fps: float | None, frames: int | None) -> tuple[Frames, float]:
    """See :meth:`stepvar.media.video.Video.read`: frames (F, H, W, 3) and their rate."""
    fps = None if fps is None else check_rate(fps)
    frames = None if frames is None else whole_number("frames", frames, Range(1))
    if not os.path.exists(path):  # unlike Path.exists, also False for a name that is too long
        raise UsageError(f"{path}: there is no such file or folder; check the path")
    if path.is_dir():
        found, rate = _read_folder(path, fps, frames)
    else:
        check_regular(path)
        found, rate = (_read_gif if path.suffix.lower() == ".gif" else _read_file)(path, fps, frames)
    if frames is not None and len(found) < frames:
        raise UsageError(f"{path}: has {len(found)} frames at {rate:g} per second, {frames} are needed")
    if len({frame.shape for frame in found}) > 1:
        raise UsageError(f"{path}: its images have different sizes; a video needs images of one size")
    return np.stack(found), rate


def _some(path: Path, frames: Iterable[Frames], count: int | None) -> list[Frames]:
    """The first frames, or all of them, up to a limit of memory."""
    found: list[Frames] = []
    for frame in islice(frames, count):
        found.append(frame)
        _check_memory(str(path), len(found), frame.nbytes)
    return found


def _check_memory(where: str, count: int, size: int) -> None:
    """Raises a UsageError for more frames, of ``size`` bytes each, than are read of one file."""
    remedy = "ask for fewer with frames=, or a lower rate with fps="
    if count > MOST_READ:
        raise UsageError(f"{where}: gives more than {MOST_READ:,} frames; {remedy}")
    if count * size > MOST_FRAMES:
        raise UsageError(f"{where}: has more than {MOST_FRAMES / 1e9:.0f} GB of frames; {remedy}")


def frame_paths(folder: Path) -> list[Path]:
    """The images of a folder in order: numbers in their names count as numbers, so 2 comes before 10."""

    def parts(path: Path) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]{1,18})", path.name)]

    return sorted((path for path in folder.glob("*") if path.suffix.lower() in FORMATS), key=parts)


def _read_folder(folder: Path, fps: float | None, frames: int | None) -> tuple[list[Frames], float]:
    paths = frame_paths(folder)
    if not paths:
        raise UsageError(f"{folder}: holds no .png files; name a folder of frames, or a video file")
    with opened(paths[0]) as image:
        rate = _stated_rate(image.info.get("fps")) or fps or FPS
    return _some(folder, (np.asarray(read_image(path, "frame")) for path in paths), frames), rate


def _stated_rate(text: Any) -> float | None:
    """The rate that a text such as ``16`` or ``30000/1001`` states; None if it is not one of a video.

    Read as floats: an exponent of some digits would make exact fractions fill the memory.
    """
    if not isinstance(text, str) or len(text) > LONGEST_RATE:
        return None
    try:
        above, _, below = text.partition("/")
        rate = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        return None
    return rate if RATES.holds(rate) else None


def _read_gif(path: Path, fps: float | None, frames: int | None) -> tuple[list[Frames], float]:
    """Through Pillow, which is always there; each frame is shown for as long as the file says."""
    with opened(path) as image:
        lengths: list[float] = []

        def timed() -> Iterator[Shown]:
            for index in range(getattr(image, "n_frames", 1)):
                image.seek(index)
                shown = Shown(np.asarray(as_rgb(image)), sum(lengths))
                _check_memory(str(path), index + 1, shown.pixels.nbytes)
                # Players show what is shorter than two hundredths of a second for ten.
                length = image.info.get("duration", 0) / 1000
                lengths.append(length if length >= 0.02 else 0.1)
                yield shown

        if fps is None:
            found = _some(path, (shown.pixels for shown in timed()), frames)
            rate, whole = (count(len(lengths) / sum(lengths)) for count in (float, round))
            # Times are in hundredths of a second: 16 frames in 1.00 or in 1.01 seconds are 16 per second.
            return found, whole if whole and abs(len(lengths) / whole - sum(lengths)) <= 0.011 else rate
        every = list(timed())
        chosen = at_rate(every, fps, fps, lengths[-1] - 0.01, frames, str(path))
        return _some(path, (shown.pixels for shown in chosen), frames), fps


class Shown(NamedTuple):
    """A frame and the second from which it is shown."""

    pixels: Frames
    time: float | None


def mp4_comment(path: Path) -> str:
    """What a video file says of itself."""
    av = pyav()
    try:
        with av.open(*_local(path)) as container:
            return str(container.metadata.get("comment", ""))
    except av.FFmpegError as error:
        raise UsageError(f"{path}: cannot be read as a video ({error.strerror}); give a video file") from None


def _local(path: Path) -> tuple[Any, ...]:
    """Arguments of ``av.open``: as an absolute path, since ``12:30.mp4`` could be a protocol; lists lead nowhere."""
    return str(path.absolute()), "r", None, {"protocol_whitelist": "file"}


def _read_file(path: Path, fps: float | None, frames: int | None) -> tuple[list[Frames], float]:
    av = pyav()
    try:
        with av.open(*_local(path)) as container:
            if not container.streams.video:
                raise UsageError(f"{path}: holds no video; give a video file")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = float(stream.average_rate or stream.guessed_rate or FPS)
            if fps is None and not RATES.holds(rate):
                raise UsageError(f"{path}: states {rate:g} frames per second; give the rate to read it at with fps=")
            decoded = container.decode(stream)
            chosen = decoded if fps is None else at_rate(decoded, rate, fps, None, frames, str(path))
            shape = float(stream.sample_aspect_ratio or 1)
            found = _some(path, (_upright(frame, shape) for frame in chosen), frames)
    except av.FFmpegError as error:
        raise UsageError(f"{path}: cannot be read as a video ({error.strerror}); give a video file") from None
    except (ValueError, LookupError, ArithmeticError, MemoryError, UnicodeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path}: is damaged ({error}); give a video file") from None
    if not found:
        raise UsageError(f"{path}: holds no frames; give a video file")
    return found, fps or rate


_HDR = {16: "PQ", 18: "HLG"}
"""Transfer functions that are not those of a screen, by the numbers of H.273."""


def _upright(frame: Any, shape: float) -> Frames:
    """A decoded frame as it is meant to be seen, (H, W, 3).

    Args:
        shape: width over height of a pixel, where the file states another than 1.
    """
    if frame.color_trc in _HDR:
        raise UsageError(f"video: its levels are HDR ({_HDR[frame.color_trc]}); convert it to BT.709 first")
    image: Frames = frame.to_ndarray(format="rgb24")
    if 0.1 <= shape <= 10 and shape != 1:
        size = (max(1, round(image.shape[1] * shape)), image.shape[0])
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    # Where a pixel goes: x' = a x + c y, y' = b x + d y; turns by quarters and reflections only.
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5]
    if abs(b) > abs(a):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def at_rate(
    frames: Iterable[Any],
    rate: float,
    fps: float,
    last: float | None = None,
    most: int | None = None,
    where: str = "video",
) -> Iterator[Any]:
    """Of frames with the times at which they appear, those seen at multiples of ``1 / fps``.

    Args:
        rate: of the frames, for those without a time.
        last: for how many seconds the last one is seen; None: as the rate says.
        most: how many are taken of them; None: all.
        where: what errors name.

    Raises:
        UsageError: if times are so far apart that repeating a frame would take more than one may read.
    """

    def timed() -> Iterator[tuple[float, Any]]:
        now = 0.0
        for index, frame in enumerate(frames):
            now = index / rate if frame.time is None else frame.time
            yield now, frame
        yield now + (1 / rate if last is None else last), None

    count, start = 0, None
    for (now, frame), (until, _) in pairwise(timed()):
        start = now if start is None else start
        # Times are rounded in files, so a frame counts from a hair before its time.
        end = until - start - 1e-3
        size = frame.pixels.nbytes if isinstance(frame, Shown) else 3 * frame.width * frame.height
        _check_memory(where, min(math.ceil(end * fps), most or sys.maxsize), size)
        while count / fps < end and (most is None or count < most):
            yield frame
            count += 1
